"""Absolute, relative and root-mean-square error over a split, summed in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from compactmtl.tasks.base import Task
from compactmtl.tasks.common import nothing_valid

if TYPE_CHECKING:
    from torch import Tensor

Error = Literal["absolute", "relative", "root_square"]

LEAST = 1.17e-6  # of a true value that an error is relative to: nothing is divided by 0


class Deviation:
    """Errors of predicted against true values, in the data's unit.

    Sums in float32 would stall on a split of 10**8 pixels.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        import torch

        self._elements = torch.zeros((), dtype=torch.int64)
        self._absolute, self._relative, self._square = torch.zeros(3, dtype=torch.float64).unbind()

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add elements of equal shape, all of which count."""
        if target.numel() == 0:
            return
        prediction, target = prediction.cpu().double(), target.cpu().double()
        error = (prediction - target).abs()
        self._elements += target.numel()
        self._absolute += error.sum()
        self._relative += (error / target.abs().clamp(min=LEAST)).sum()
        self._square += error.square().sum()

    def sums(self) -> list[Tensor]:
        """The live counts and sums."""
        return [self._elements, self._absolute, self._relative, self._square]

    def _mean(self, total: Tensor) -> float:
        if self._elements == 0:
            raise nothing_valid(self._name)
        return float(total) / int(self._elements)

    def absolute(self) -> float:
        """Mean of |prediction - target|. Raises DataError where nothing was counted."""
        return self._mean(self._absolute)

    def relative(self) -> float:
        """Mean of |prediction - target| / |target|. Raises DataError where nothing was counted."""
        return self._mean(self._relative)

    def root_square(self) -> float:
        """Root of the mean squared error. Raises DataError where nothing was counted."""
        return float(self._mean(self._square) ** 0.5)


class DeviationMetrics:
    """Errors of a task's decoded outputs over all known elements of the split; `errors` names each metric's."""

    def __init__(self, task: Task, errors: Mapping[str, Error]) -> None:
        self._task, self._errors = task, errors
        self._deviation = Deviation(task.name)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = self._task.known(target)
        self._deviation.update(self._task.decode(output)[known], target[known])

    def sums(self) -> list[Tensor]:
        """The live counts and sums."""
        return self._deviation.sums()

    def compute(self) -> dict[str, float]:
        """Raises DataError where no element of the split is known."""
        return {metric: getattr(self._deviation, error)() for metric, error in self._errors.items()}
