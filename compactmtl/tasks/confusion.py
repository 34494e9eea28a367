"""The confusion matrix that segmentation and classification accumulate: torchmetrics, with labels checked."""

from __future__ import annotations

from torch import Tensor

from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.common import nothing_valid


class ConfusionMatrix:
    """Exact int64 counts[target, prediction]; elements with the ignore index count nowhere."""

    def __init__(self, name: str, spec: TargetSpec) -> None:
        # Importing torchmetrics takes seconds, and only evaluation needs it.
        from torchmetrics.classification import MulticlassConfusionMatrix

        self._name = name
        self._spec = spec
        # Its own checks cost more than the count; update() makes the one that data can fail.
        self._counts = MulticlassConfusionMatrix(
            len(spec.classes), ignore_index=spec.ignore_index, validate_args=False
        )

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add class indices of equal shape. Raises DataError for a label outside the classes."""
        if target.numel() == 0:
            return
        prediction, target = prediction.cpu(), target.cpu()
        classes = len(self._spec.classes)
        wrong = (target < 0) | (target >= classes)
        if self._spec.ignore_index is not None:
            wrong &= target != self._spec.ignore_index
        if wrong.any():
            raise DataError(
                f"task {self._name!r}: label {int(target[wrong][0])} is none of the {classes} classes 0..{classes - 1}",
                "mark pixels or images that count nowhere with the target's ignore_index",
            )
        self._counts.update(prediction, target)

    def compute(self) -> Tensor:
        """Counts as float64 (K, K), exact to 2**53. Raises DataError where nothing was counted."""
        # The state itself: torchmetrics' compute() warns before the first update, where we raise.
        counts = self._counts.confmat
        assert isinstance(counts, Tensor)
        if counts.sum() == 0:
            raise nothing_valid(self._name)
        return counts.double()
