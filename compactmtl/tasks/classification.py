"""Classification: one class an image."""

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
from compactmtl.tasks.losses import soft_dice


class ClassificationOptions(Frozen):
    """Options of a classification task."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class ClassificationTask:
    """Logits (B, K) against a class int64 (B,). Losses: cross-entropy, and soft Dice over the batch. Metric: `accuracy`,
    exact over the split."""

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: ClassificationOptions

    kind: ClassVar[str] = "classification"
    dense: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "dice")
    primary: ClassVar[str] = "accuracy"
    meaning: ClassVar[str] = "score (logit) of each class; the class with the largest score is the prediction"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "accuracy": MetricInfo(higher_is_better=True, share=True)
    }

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "class")
        options = read_options(ClassificationOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        check_used(name, config, loss, {"label_smoothing": ("cross_entropy",)})
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def channels(self) -> int:
        return len(self.spec.classes)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.loss_name == "dice":
            return soft_dice(output, target, self.spec.ignore_index)
        return cross_entropy(output, target, self.spec.ignore_index, self.options.label_smoothing)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Class index int64 (B,)."""
        return output.argmax(1)

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.text_picture(self.caption(value))

    def caption(self, value: NDArray[Any]) -> str:
        return pictures.class_text(value, self.spec.classes)


class ClassificationMetrics:
    """Counts of target class by predicted class over the whole split."""

    def __init__(self, task: ClassificationTask) -> None:
        self._confusion = ConfusionMatrix(task.name, task.spec)

    def update(self, output: Tensor, target: Tensor) -> None:
        self._confusion.update(output.argmax(1), target)

    def compute(self) -> dict[str, float]:
        """Raises DataError where no image of the split counts."""
        counts = self._confusion.compute()
        return {"accuracy": float(counts.diagonal().sum() / counts.sum())}
