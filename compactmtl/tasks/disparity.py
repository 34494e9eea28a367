"""Disparity: one value a pixel that is proportional to inverse depth, in the data's unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.config.recipe import Frozen, Positive, TaskConfig
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, choose_loss, masked_mean, read_options
from compactmtl.tasks.deviation import Deviation


class DisparityOptions(Frozen):
    """Options of a disparity task."""

    min_disparity: Positive | None = None  # targets below it, too far to be told from infinity, count nowhere


@dataclass(frozen=True)
class DisparityTask:
    """Disparity (B, 1, H, W) in the target's unit, both ways; a target of 0, below `min_disparity` or not finite is
    unknown.

    Losses over known pixels: `l1`, |d - d*|; `l1_std`, that in standard deviations of the target, so that a task's
    weight does not depend on its unit. Metrics, exact over the known pixels of the split: `abs_err` and `rmse` in the
    data's unit, `rel_err`, |d - d*| / d*.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: DisparityOptions

    kind: ClassVar[str] = "disparity"
    dense: ClassVar[bool] = True
    channels: ClassVar[int] = 1
    losses: ClassVar[tuple[str, ...]] = ("l1", "l1_std")
    primary: ClassVar[str] = "abs_err"
    meaning: ClassVar[str] = "disparity at each pixel, proportional to 1 / depth"

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "disparity")
        options = read_options(DisparityOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        unit = self.spec.unit
        return {
            "abs_err": MetricInfo(higher_is_better=False, unit=unit),
            "rel_err": MetricInfo(higher_is_better=False),
            "rmse": MetricInfo(higher_is_better=False, unit=unit, gain=False),
        }

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool, of the target's shape."""
        known = (target > 0) & target.isfinite()
        if self.options.min_disparity is not None:
            known &= target >= self.options.min_disparity
        return known

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        known = self.known(target)
        # Masked before the arithmetic: an infinite or NaN target would make gradients that are not finite.
        error = (output.float() - torch.where(known, target, torch.zeros_like(target))).abs()
        return masked_mean(error / self.spec.std if self.loss_name == "l1_std" else error, known)

    def metrics(self) -> DisparityMetrics:
        return DisparityMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Disparity (B, 1, H, W): the output is in the data's unit already."""
        return output

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.disparity_picture(value, reference)

    def caption(self, value: NDArray[Any]) -> str:
        return ""


class DisparityMetrics:
    """Errors over all known pixels of the split."""

    def __init__(self, task: DisparityTask) -> None:
        self._task = task
        self._deviation = Deviation(task.name)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = self._task.known(target)
        self._deviation.update(output[known], target[known])

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known."""
        errors = self._deviation
        return {"abs_err": errors.absolute(), "rel_err": errors.relative(), "rmse": errors.root_square()}
