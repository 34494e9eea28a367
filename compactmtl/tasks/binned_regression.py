"""Binned regression: one number an image as the expectation of a distribution over bins.

Sources: the expectation of a softmax over bins, Rothe et al., "Deep expectation of real and apparent age from a single
image", IJCV 2018; soft targets, arXiv:1611.01731 (Gaussian) and arXiv:2403.03950, section 3.1 (two-hot).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from compactmtl.config.recipe import Frozen, Positive, TaskConfig
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, check_used, choose_loss, masked_mean, read_options
from compactmtl.tasks.deviation import Deviation


class BinnedRegressionOptions(Frozen):
    """Options of a binned regression task; `low` and `high` have no default."""

    low: float  # value of the first bin, in the target's unit; no prediction lies below it
    high: float  # value of the last bin
    bins: Annotated[int, Field(ge=2)] = 32  # spread evenly from low to high, both included
    sigma: Positive | None = (
        None  # spread of a soft target, in the unit; none: two bins share a value between them
    )
    expectation_weight: Positive = 1.0  # of the second term of cross_entropy_l1

    @model_validator(mode="after")
    def _range(self) -> BinnedRegressionOptions:
        if not self.low < self.high:
            raise ValueError(f"the bins need low < high, found {self.low:g} and {self.high:g}")
        return self


@dataclass(frozen=True)
class BinnedRegressionTask:
    """Logits (B, bins) against a scalar (B,) in the target's unit; a target that is not finite is unknown.

    A target becomes a distribution over the bins: the two bins around it, so weighted that the expectation is the
    target, or with `sigma` a Gaussian around it. One outside [low, high] counts as the nearer end in the loss, and as
    it is in the metrics. Losses: `cross_entropy` against that distribution; `cross_entropy_l1`, to which is added
    `expectation_weight` |expectation - target| in standard deviations of the target.
    Metrics of the expectation, exact over the split, in the unit: `mae`, `rmse`.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: BinnedRegressionOptions

    kind: ClassVar[str] = "binned_regression"
    dense: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ("cross_entropy", "cross_entropy_l1")
    primary: ClassVar[str] = "mae"
    meaning: ClassVar[str] = (
        "score (logit) of each bin from low to high; the value is the mean of the bins' values under "
        "the softmax"
    )

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "scalar")
        options = read_options(BinnedRegressionOptions, name, config)
        loss = choose_loss(name, config, cls.losses)
        check_used(name, config, loss, {"expectation_weight": ("cross_entropy_l1",)})
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def channels(self) -> int:
        return self.options.bins

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        unit = self.spec.unit
        return {
            "mae": MetricInfo(higher_is_better=False, unit=unit),
            "rmse": MetricInfo(higher_is_better=False, unit=unit, gain=False),
        }

    def centers(self, device: torch.device | None = None) -> Tensor:
        """The bins' values in the target's unit, float32 (bins,)."""
        return torch.linspace(self.options.low, self.options.high, self.options.bins, device=device)

    def distribution(self, target: Tensor) -> Tensor:
        """The soft target (B, bins) of values (B,): rows of shares that add up to 1."""
        low, high, bins = self.options.low, self.options.high, self.options.bins
        place = (target.float().clamp(low, high)[:, None] - low) / (high - low) * (bins - 1)
        distance = place - torch.arange(bins, device=target.device)
        if self.options.sigma is None:
            return (1 - distance.abs()).clamp(min=0)
        width = self.options.sigma / (high - low) * (bins - 1)
        return (-0.5 * (distance / width).square()).softmax(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        # Masked before the arithmetic: a NaN target would make a NaN gradient.
        target = torch.where(known, target, torch.full_like(target, self.options.low))
        values = -(self.distribution(target) * output.float().log_softmax(1)).sum(1)
        if self.loss_name == "cross_entropy_l1":
            within = target.clamp(self.options.low, self.options.high)
            error = (self.decode(output) - within).abs() / self.spec.std
            values = values + self.options.expectation_weight * error
        return masked_mean(values, known)

    def metrics(self) -> BinnedRegressionMetrics:
        return BinnedRegressionMetrics(self)

    def decode(self, output: Tensor) -> Tensor:
        """The expected value (B,) in the target's unit."""
        # no matrix product: autocast would round it to half precision
        return (output.float().softmax(1) * self.centers(output.device)).sum(1)

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.text_picture(self.caption(value))

    def caption(self, value: NDArray[Any]) -> str:
        return pictures.value_text(float(value), self.spec.unit)


class BinnedRegressionMetrics:
    """Errors of the expectation over all images of the split."""

    def __init__(self, task: BinnedRegressionTask) -> None:
        self._task = task
        self._deviation = Deviation(task.name)

    def update(self, output: Tensor, target: Tensor) -> None:
        known = target.isfinite()
        self._deviation.update(self._task.decode(output)[known], target[known])

    def compute(self) -> dict[str, float]:
        """Raises DataError where no image of the split has a value."""
        return {"mae": self._deviation.absolute(), "rmse": self._deviation.root_square()}
