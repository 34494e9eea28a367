"""The confusion matrix that segmentation and classification accumulate, with labels checked."""

from __future__ import annotations

import torch
from torch import Tensor

from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.common import nothing_valid


class ConfusionMatrix:
    """Exact int64 counts[target, prediction]; elements with the ignore index count nowhere."""

    def __init__(self, name: str, spec: TargetSpec) -> None:
        self._name = name
        self._spec = spec
        classes = len(spec.classes)
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add class indices of equal shape. Raises DataError for a label outside the classes."""
        if target.numel() == 0:
            return
        prediction, target = prediction.cpu().flatten(), target.cpu().flatten()
        classes = len(self._spec.classes)
        wrong = (target < 0) | (target >= classes)
        if self._spec.ignore_index is not None:
            known = target != self._spec.ignore_index
            wrong &= known
        if wrong.any():
            raise DataError(
                f"task {self._name!r}: label {int(target[wrong][0])} is none of the {classes} classes 0..{classes - 1}",
                "mark pixels or images that count nowhere with the target's ignore_index",
            )
        if self._spec.ignore_index is not None:
            prediction, target = prediction[known], target[known]
        pairs = torch.bincount(target.long() * classes + prediction, minlength=classes**2)
        self._counts += pairs.view(classes, classes)

    def sums(self) -> list[Tensor]:
        """The live counts."""
        return [self._counts]

    def compute(self) -> Tensor:
        """Counts as float64 (K, K), exact to 2**53. Raises DataError where nothing was counted."""
        if self._counts.sum() == 0:
            raise nothing_valid(self._name)
        return self._counts.double()
