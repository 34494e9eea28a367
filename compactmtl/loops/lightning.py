"""Shrinking in Lightning's Trainer. Needs the extra `lightning`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.loops.guest import Guest

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise MissingDependencyError(
        f"Lightning cannot be imported: {error}", "pip install 'compactmtl[lightning]'"
    ) from error


class LightningShrinking(pl.Callback):
    """`compactmtl.loops.Shrinking` as a callback, for automatic optimization with one optimizer on one device.

        shrinking = LightningShrinking(image, module="net", mac_reduction=0.7)
        pl.Trainer(max_epochs=20, callbacks=[shrinking]).fit(lightning_module, loader)
        result = shrinking.finish()

    Channels are ranked by gradients before they are clipped. With `shrink_every` dead channels leave the network before the
    next epoch's first batch. Lightning's checkpoints hold the state, and
    `fit(ckpt_path=…)` goes on with a module and a callback that are built as at the start.
    """

    def __init__(self, example_inputs: Any, *, module: str = "", **arguments: Any) -> None:
        """
        Args:
            example_inputs: as for `Shrinking`; moved to the module's device.
            module: where in the LightningModule the network is, such as "net". Empty: the LightningModule itself, whose
                forward `torch.export` can then trace.
            arguments: those of `Shrinking`: a budget and options. `total_steps` is by default what the Trainer
                estimates.
        """
        self._guest = Guest(example_inputs, module, arguments, "callbacks=[LightningShrinking(…)]")

    @property
    def shrinking(self) -> Any:
        """The Shrinking of the training, from its start on. Raises TrainingError before."""
        return self._guest.shrinking

    def finish(self, **arguments: Any) -> Any:
        """The compact network, its plan and report, as `Shrinking.finish` gives them."""
        return self._guest.shrinking.finish(**arguments)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The network is on its device, the optimizer is built, and neither has the state of a checkpoint."""
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ConfigError(
                f"the LightningModule has {len(trainer.optimizers)} optimizers"
                f"{'' if pl_module.automatic_optimization else ' and steps them itself'}",
                "shrink with one optimizer and automatic optimization, or use Shrinking in a loop of your own",
            )
        if trainer.world_size > 1:
            raise ConfigError(f"the Trainer has {trainer.world_size} processes", "train with devices=1")
        self._guest.start(pl_module, trainer.optimizers[0], lambda: _steps(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._guest.end_epochs(trainer.current_epoch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.shrinking.pending:  # a training_step that returned None has no gradients
            self.shrinking.observe()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.shrinking.pending:
            self.shrinking.step()

    def state_dict(self) -> dict[str, Any]:
        return self._guest.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._guest.load_state_dict(state_dict)


def _steps(trainer: pl.Trainer) -> int:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ConfigError(
            "the Trainer trains without an end, and a schedule needs one",
            "set max_epochs or max_steps, or give total_steps",
        )
    return int(steps)
