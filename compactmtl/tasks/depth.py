"""Depth: one distance a pixel, in the data's unit."""

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

# Far below any depth that a sensor gives; keeps the logarithm of an underflown output finite.
LEAST_DEPTH = 1e-6


class DepthOptions(Frozen):
    """Options of a depth task."""

    max_depth: Positive | None = None  # targets beyond it count nowhere


@dataclass(frozen=True)
class DepthTask:
    """Depth (B, 1, H, W) in the target's unit, both ways; a target of 0, beyond `max_depth` or not finite is unknown.

    Losses over known pixels: `l1`, |d - d*|; `log_l1`, |log d - log d*|, which weighs near and far alike.
    Metrics, exact over the known pixels of the split: `abs_err` and `rmse` in the data's unit, `rel_err`, |d - d*| / d*.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: DepthOptions

    kind: ClassVar[str] = "depth"
    dense: ClassVar[bool] = True
    channels: ClassVar[int] = 1
    losses: ClassVar[tuple[str, ...]] = ("l1", "log_l1")
    primary: ClassVar[str] = "abs_err"
    meaning: ClassVar[str] = "depth at each pixel"

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "depth")
        options = read_options(DepthOptions, name, config)
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
        if self.options.max_depth is not None:
            known &= target <= self.options.max_depth
        return known

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        known = self.known(target)
        output = output.float()
        # Masked before the arithmetic: an infinite or zero target would make gradients that are not finite.
        target = torch.where(known, target, torch.ones_like(target))
        if self.loss_name == "log_l1":
            output, target = output.clamp(min=LEAST_DEPTH).log(), target.log()
        return masked_mean((output - target).abs(), known)

    def metrics(self) -> DepthMetrics:
        return DepthMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """Depth (B, 1, H, W): the output is in the data's unit already."""
        return output

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.depth_picture(value, reference)

    def caption(self, value: NDArray[Any]) -> str:
        return ""


class DepthMetrics:
    """Errors over all known pixels of the split."""

    def __init__(self, task: DepthTask) -> None:
        self._task = task
        self._deviation = Deviation(task.name)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = self._task.known(target)
        self._deviation.update(output[known], target[known])

    def compute(self) -> dict[str, float]:
        """Raises DataError where no pixel of the split is known."""
        errors = self._deviation
        return {"abs_err": errors.absolute(), "rel_err": errors.relative(), "rmse": errors.root_square()}
