"""Shrinking in the Trainer of Hugging Face's transformers. Needs the extra `transformers`."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import torch
from torch import nn

from compactmtl.artifacts.states import CodeError, read_state
from compactmtl.errors import ArtifactError, ConfigError, MissingDependencyError
from compactmtl.loops.guest import Guest

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingDependencyError(
        f"transformers cannot be imported: {error}", "pip install 'compactmtl[transformers]'"
    ) from error


class TransformersShrinking(TrainerCallback, ExportableState):
    """`compactmtl.loops.Shrinking` as a callback, for training on one device.

        shrinking = TransformersShrinking({"pixel_values": image}, mac_reduction=0.3)
        Trainer(model, arguments, train_dataset=data, callbacks=[shrinking]).train()
        result = shrinking.finish()

    Channels are ranked by gradients as they are clipped (`max_grad_norm`). With `shrink_every` dead channels leave the
    network before the next epoch's first batch. The Trainer's checkpoints hold the state, and
    `train(resume_from_checkpoint=…)` goes on with a Trainer and a callback that are built as at the start.
    """

    def __init__(self, example_inputs: Any, *, module: str = "", **arguments: Any) -> None:
        """
        Args:
            example_inputs: as for `Shrinking`; moved to the model's device.
            module: where in the model the network is; empty: the model itself.
            arguments: those of `Shrinking`: a budget and options. `total_steps` is by default what the Trainer counts.
        """
        self._model: nn.Module | None = None
        self._guest = Guest(
            example_inputs, module, arguments, "Trainer(…, callbacks=[TransformersShrinking(…)])"
        )

    @property
    def shrinking(self) -> Any:
        """The Shrinking of the training, from its start on. Raises TrainingError before."""
        return self._guest.shrinking

    def finish(self, **arguments: Any) -> Any:
        """The compact network, its plan and report, as `Shrinking.finish` gives them."""
        return self._guest.shrinking.finish(**arguments)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.restore_callback_states_from_checkpoint:
            raise ConfigError(
                "restore_callback_states_from_checkpoint builds callbacks anew, without their example inputs",
                "leave it out: TransformersShrinking reads its state from the checkpoint itself",
            )
        if args.parallel_mode.value not in ("not_parallel", "not_distributed"):
            raise ConfigError(
                f"the Trainer trains on several devices ({args.parallel_mode.value})", "train on one device"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Model and optimizer have the state of a checkpoint by now, where the training goes on."""
        states: Any = state.stateful_callbacks  # by the class's name
        saved = states.get(type(self).__name__, {}).get("attributes", {})
        self._model = kwargs["model"]
        if saved.get("state"):
            # the Trainer only warns where it finds no weights under the model's names
            if saved["weights"] != _digest(self._model):
                raise ArtifactError(
                    f"the Trainer goes on with other weights of {type(self._model).__name__} than the checkpoint's",
                    "where it warns of missing keys, build the model from the checkpoint: from_pretrained(folder)",
                )
            self._guest.load_state_dict(_decoded(saved["state"]))
        self._guest.start(self._model, kwargs["optimizer"], lambda: state.max_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._guest.end_epochs(int((state.epoch or 0) + 1e-6))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.shrinking.step()

    def state(self) -> dict[str, Any]:
        """For trainer_state.json, which holds text alone."""
        found = self._guest.state_dict()
        if self._model is None or not found:
            return {"args": {}, "attributes": {}}
        return {"args": {}, "attributes": {"state": _encoded(found), "weights": _digest(self._model)}}


def _digest(model: nn.Module) -> str:
    """A hash of a model's weights and buffers, at its first size."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encoded(state: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _decoded(text: str) -> dict[str, Any]:
    try:
        state = read_state(io.BytesIO(base64.b64decode(text)))
    except (CodeError, ValueError) as error:
        raise ArtifactError(
            f"the state of the shrinking in the Trainer's checkpoint is damaged: {error}",
            "resume from another checkpoint",
        ) from error
    if not isinstance(state, dict):
        raise ArtifactError(
            f"the Trainer's checkpoint holds a {type(state).__name__} as state of the shrinking",
            "resume from another checkpoint",
        )
    return state
