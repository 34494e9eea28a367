"""Classification: one class an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from compactmtl.config.recipe import Frozen
from compactmtl.tasks.base import Array, MetricInfo, ValueTask
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.numeric import softmax
from compactmtl.tasks.summaries import class_text

if TYPE_CHECKING:
    from torch import Tensor


class ClassificationOptions(Frozen):
    """Options of a classification task."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ClassificationTask(ValueTask):
    """Logits (B, K) against a class int64 (B,). Losses: cross-entropy, and soft Dice over the batch. Metric: `accuracy`,
    exact over the split."""

    options: ClassificationOptions
    Options = ClassificationOptions
    target_kind = "class"
    least_classes = 2
    losses = ("cross_entropy", "dice")
    option_losses: ClassVar[Mapping[str, Sequence[str]]] = {"label_smoothing": ("cross_entropy",)}
    primary = "accuracy"
    meaning = "score (logit) of each class; the class with the largest score is the prediction"
    values = "logits"
    axis = "class"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "accuracy": MetricInfo(higher_is_better=True, share=True)
    }
    postprocess = ("argmax", "softmax")
    distillation = "softmax"
    sureness = "probability"
    mixup = "loss"

    @property
    def channels(self) -> int:
        return len(self.spec.classes)

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B,)."""
        from compactmtl.tasks.losses import labeled

        return labeled(target, self.spec.ignore_index)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.losses import cross_entropy, soft_dice

        if self.loss_name == "dice":
            return soft_dice(output, target, self.spec.ignore_index)
        return cross_entropy(output, target, self.spec.ignore_index, self.options.label_smoothing)

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Class index int64 (B,)."""
        return output.argmax(1)

    def certainty(self, output: Tensor) -> Tensor:
        """The softmax of the class, (B,)."""
        from compactmtl.tasks.losses import at_least_float32

        return at_least_float32(output).softmax(1).amax(1)

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="argmax",
            how="take the index of the largest score along axis 1; the softmax of the scores along axis 1 is each class's "
            "probability",
            gives="index of the class of the picture, from 0",
        )

    def decode_array(self, output: Array) -> Array:
        index: Array = output.argmax(1)
        return index

    def probabilities(self, output: Array) -> dict[str, float]:
        """The softmax, by class name."""
        return dict(zip(self.spec.classes, softmax(output.astype(np.float32)).tolist(), strict=True))

    def caption(self, value: Array) -> str:
        return class_text(value, self.spec.classes)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        return {"class": self.caption(value), "probabilities": dict(probabilities)}


class ClassificationMetrics:
    """Counts of target class by predicted class over the whole split."""

    def __init__(self, task: ClassificationTask) -> None:
        from compactmtl.tasks.confusion import ConfusionMatrix

        self._task = task
        self._confusion = ConfusionMatrix(task.name, task.spec)

    def update(self, output: Tensor, target: Tensor) -> None:
        self._confusion.update(self._task.decode(output), target)

    def sums(self) -> list[Tensor]:
        """The live counts."""
        return self._confusion.sums()

    def compute(self) -> dict[str, float]:
        """Raises DataError where no image of the split counts."""
        counts = self._confusion.compute()
        return {"accuracy": float(counts.diagonal().sum() / counts.sum())}
