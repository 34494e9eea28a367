"""Train the small network under Lightning; killed at a step, or on from the last checkpoint.

python -m tests.loops.lightning_run FOLDER [--kill STEP] [--resume]
"""

from __future__ import annotations

import argparse
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compactmtl.loops.lightning import LightningShrinking
from tests.loops.nets import EPOCHS, SIZE, STEPS, adam, example, loss_of, two_heads

BATCH = 8


class Images(Dataset[Tensor]):
    def __len__(self) -> int:
        return BATCH * STEPS // EPOCHS

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, SIZE, SIZE, generator=generator, dtype=torch.float64)


class Module(pl.LightningModule):
    """The network in a LightningModule, whose weights are drawn anew in each process."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = two_heads(seed)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return loss_of(self.net(batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adam(self.net)


class Kill(pl.Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def callback(**more: Any) -> LightningShrinking:
    settings: dict[str, Any] = {"mac_reduction": 0.5, "min_channels": 2, "every": 2, "start": 0.1, "end": 0.6}
    return LightningShrinking(example(), **{"module": "net", "shrink_every": 1, **settings, **more})


def trainer(*callbacks: pl.Callback, **more: Any) -> pl.Trainer:
    arguments: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, **more}
    return pl.Trainer(
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **arguments
    )


def loader() -> DataLoader[Tensor]:
    return DataLoader(Images(), batch_size=BATCH)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Lightning's, on the number of workers and the like
    shrinking = callback()
    saving = ModelCheckpoint(options.folder, save_last=True, save_on_train_epoch_end=True)
    fit = trainer(shrinking, saving, Kill(options.kill), gradient_clip_val=1.0, max_epochs=6)
    module = Module(seed=7 if options.resume else 0)
    fit.fit(module, loader(), ckpt_path=options.folder / "last.ckpt" if options.resume else None)
    result = shrinking.finish()
    torch.save(
        {
            "net": module.net.state_dict(),
            "optimizer": fit.optimizers[0].state_dict(),
            "compact": result.model.state_dict(),
        },
        options.folder / "final.pt",
    )


if __name__ == "__main__":
    main()
