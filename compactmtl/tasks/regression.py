"""Regression: one number an image, such as an age in years."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.config.recipe import Frozen, Positive, TaskConfig
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, choose_loss, masked_mean, read_options
from compactmtl.tasks.deviation import Deviation


class RegressionOptions(Frozen):
    """Options of a regression task."""

    beta: Positive = 1.0  # where smooth_l1 turns from square to linear, in standard deviations


@dataclass(frozen=True)
class RegressionTask:
    """A value (B, 1) in the target's unit against a scalar (B,); a target that is not finite is unknown.

    The output is in the unit itself, so that an exported model needs no key to be read. The losses `smooth_l1`, `l1`
    and `l2` divide by the training split's standard deviation, so that a task's weight does not depend on its unit.
    Metrics, exact over the split, in the unit: `mae`, `rmse`.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: RegressionOptions

    kind: ClassVar[str] = "regression"
    dense: ClassVar[bool] = False
    channels: ClassVar[int] = 1
    losses: ClassVar[tuple[str, ...]] = ("smooth_l1", "l1", "l2")
    primary: ClassVar[str] = "mae"
    meaning: ClassVar[str] = "the value itself"

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "scalar")
        options = read_options(RegressionOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        unit = self.spec.unit
        return {
            "mae": MetricInfo(higher_is_better=False, unit=unit),
            "rmse": MetricInfo(higher_is_better=False, unit=unit, gain=False),
        }

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        # Masked before the arithmetic: a NaN target would make a NaN gradient.
        target = torch.where(known, target, torch.zeros_like(target))
        error = (output.float().squeeze(1) - target) / self.spec.std
        if self.loss_name == "l1":
            values = error.abs()
        elif self.loss_name == "l2":
            values = error.square()
        else:
            zeros = torch.zeros_like(error)
            values = F.smooth_l1_loss(error, zeros, reduction="none", beta=self.options.beta)
        return masked_mean(values, known)

    def metrics(self) -> RegressionMetrics:
        return RegressionMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Value (B,) in the target's unit."""
        return output.squeeze(1)

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.text_picture(self.caption(value))

    def caption(self, value: NDArray[Any]) -> str:
        return pictures.value_text(float(value), self.spec.unit)


class RegressionMetrics:
    """Errors over all images of the split."""

    def __init__(self, task: RegressionTask) -> None:
        self._deviation = Deviation(task.name)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = target.isfinite()
        self._deviation.update(output.squeeze(1)[known], target[known])

    def compute(self) -> dict[str, float]:
        """Raises DataError where no image of the split has a value."""
        return {"mae": self._deviation.absolute(), "rmse": self._deviation.root_square()}
