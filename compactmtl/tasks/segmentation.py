"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from compactmtl.config.recipe import Frozen, TaskConfig
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, check_used, choose_loss, cross_entropy, read_options
from compactmtl.tasks.confusion import ConfusionMatrix
from compactmtl.tasks.losses import focal, soft_dice


class SegmentationOptions(Frozen):
    """Options of a segmentation task."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the cross-entropy
    gamma: Annotated[float, Field(ge=1)] = 2.0  # of the focal loss: how little easy pixels count


@dataclass(frozen=True)
class SegmentationTask:
    """Logits (B, K, H, W) against a mask int64 (B, H, W).

    Losses over the pixels that count: `cross_entropy`; `dice`, 1 - the mean soft Dice of the classes in the batch;
    `cross_entropy_dice`, their sum; `focal`, cross-entropy that weighs hard pixels more (see `losses`).
    Metrics, exact over the split: `miou`, the mean intersection over union of the classes present in the target
    or in the prediction, and `pixel_accuracy`. Raises DataError for a label outside the classes.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: SegmentationOptions

    kind: ClassVar[str] = "segmentation"
    dense: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "dice", "cross_entropy_dice", "focal")
    primary: ClassVar[str] = "miou"
    meaning: ClassVar[str] = (
        "score (logit) of each class at each pixel; the class with the largest score is the prediction"
    )
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "miou": MetricInfo(higher_is_better=True, share=True),
        "pixel_accuracy": MetricInfo(higher_is_better=True, share=True),
    }

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "mask")
        options = read_options(SegmentationOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        uses = {"label_smoothing": ("cross_entropy", "cross_entropy_dice"), "gamma": ("focal",)}
        check_used(name, config, loss, uses)
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def channels(self) -> int:
        return len(self.spec.classes)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        ignore = self.spec.ignore_index
        if self.loss_name == "focal":
            return focal(output, target, ignore, self.options.gamma)
        if self.loss_name == "dice":
            return soft_dice(output, target, ignore)
        loss = cross_entropy(output, target, ignore, self.options.label_smoothing)
        return loss + soft_dice(output, target, ignore) if self.loss_name == "cross_entropy_dice" else loss

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Class index int64 (B, H, W)."""
        return _greatest(output)

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.mask_picture(value, len(self.spec.classes))

    def caption(self, value: NDArray[Any]) -> str:
        return ""


def _greatest(logits: Tensor) -> Tensor:
    """Index of the greatest logit along the classes: (B, K, H, W) to (B, H, W)."""
    # argmax along a strided dimension takes four times as long on a CPU (torch 2.14)
    return logits.max(1).indices


class SegmentationMetrics:
    """Counts of target class by predicted class over the whole split."""

    def __init__(self, task: SegmentationTask) -> None:
        self._confusion = ConfusionMatrix(task.name, task.spec)

    def update(self, output: Tensor, target: Tensor) -> None:
        self._confusion.update(_greatest(output), target)

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split counts."""
        counts = self._confusion.compute()
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        present = union > 0
        return {
            "miou": float((right[present] / union[present]).mean()),
            "pixel_accuracy": float(right.sum() / counts.sum()),
        }
