"""Train a small SegFormer under the Trainer of transformers; killed at a step, or on from the last checkpoint.

python -m tests.loops.transformers_run FOLDER [--kill STEP] [--resume CHECKPOINT]
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from compactmtl.loops.transformers import TransformersShrinking

SIZE, BATCH, STEPS_PER_EPOCH = 32, 4, 5


class Rooms(Dataset[dict[str, Tensor]]):
    """Noise whose class is where it is bright."""

    def __len__(self) -> int:
        return BATCH * STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": image, "labels": (image.mean(0) > 0).long()}


def segformer(seed: int = 0) -> nn.Module:
    """Two stages, drawn anew; without dropout, which draws other numbers where there are fewer channels."""
    config = SegformerConfig(
        num_labels=2,  # type: ignore[call-arg]
        num_encoder_blocks=2,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    torch.manual_seed(seed)
    model: nn.Module = SegformerForSemanticSegmentation(config)
    return model


def callback(**more: Any) -> TransformersShrinking:
    settings: dict[str, Any] = {"mac_reduction": 0.3, "min_channels": 2, "every": 2, "start": 0.1, "end": 0.5}
    image = torch.zeros(1, 3, SIZE, SIZE)
    return TransformersShrinking({"pixel_values": image}, **{"shrink_every": 1, **settings, **more})


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    settings: dict[str, Any] = {"num_train_epochs": 4, "learning_rate": 5e-3, "save_steps": 7, **more}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=Rooms(), callbacks=list(callbacks))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--resume", help="a checkpoint's folder")
    options = parser.parse_args()
    shrinking = callback()
    # this version saves a SegFormer under names that its Trainer does not find again
    model = (
        SegformerForSemanticSegmentation.from_pretrained(last) if (last := options.resume) else segformer()
    )
    training = trainer(options.folder, model, shrinking, Kill(options.kill))
    training.train(resume_from_checkpoint=options.resume)
    training.save_model(options.folder / "final")
    optimizer = training.optimizer
    assert optimizer is not None
    states = {"optimizer": optimizer.state_dict(), "model": model.state_dict()}
    result = shrinking.finish()
    torch.save({**states, "compact": result.model.state_dict()}, options.folder / "final.pt")


if __name__ == "__main__":
    main()
