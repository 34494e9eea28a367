"""Absolute, relative and root-mean-square error over a split: torchmetrics, summed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from compactmtl.tasks.common import nothing_valid


class Deviation:
    """Errors of predicted against true values, in the data's unit.

    torchmetrics sums in float32 by default, which stalls on a split of 10**8 pixels: here states are float64.
    """

    def __init__(self, name: str) -> None:
        # Importing torchmetrics takes seconds, and only evaluation needs it.
        from torchmetrics.regression import (
            MeanAbsoluteError,
            MeanAbsolutePercentageError,
            MeanSquaredError,
        )

        self._name = name
        self._elements = 0
        self._absolute = MeanAbsoluteError().set_dtype(torch.float64)
        self._relative = MeanAbsolutePercentageError().set_dtype(torch.float64)
        self._root_square = MeanSquaredError(squared=False).set_dtype(torch.float64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add elements of equal shape, all of which count."""
        if target.numel() == 0:
            return
        prediction, target = prediction.cpu().double(), target.cpu().double()
        self._elements += target.numel()
        for metric in (self._absolute, self._relative, self._root_square):
            metric.update(prediction, target)

    def _computed(self, metric: object) -> float:
        if self._elements == 0:
            raise nothing_valid(self._name)
        return float(metric.compute())  # type: ignore[attr-defined]

    def absolute(self) -> float:
        """Mean of |prediction - target|. Raises DataError where nothing was counted."""
        return self._computed(self._absolute)

    def relative(self) -> float:
        """Mean of |prediction - target| / |target|. Raises DataError where nothing was counted."""
        return self._computed(self._relative)

    def root_square(self) -> float:
        """Root of the mean squared error. Raises DataError where nothing was counted."""
        return self._computed(self._root_square)
