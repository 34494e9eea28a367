"""What depth and disparity share: one positive value a pixel, in the data's unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compactmtl.tasks.base import Array, Legend, MapTask, MetricInfo
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.deviation import DeviationMetrics
from compactmtl.tasks.summaries import known_range

if TYPE_CHECKING:
    from torch import Tensor, nn


class PositiveMapTask(MapTask):
    """A map (B, 1, H, W) in the target's unit, both ways; a target that is not positive or not finite is unknown.

    Metrics, exact over the known pixels of the split: `abs_err` and `rmse` in the data's unit, `rel_err`, |d - d*| / d*.
    """

    channels = 1
    primary = "abs_err"
    values = "value"
    axis = "value"
    uncertainty_scale = 0.5
    sureness = "mirror"

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        unit = self.spec.unit
        return {
            "abs_err": MetricInfo(higher_is_better=False, unit=unit),
            "rel_err": MetricInfo(higher_is_better=False),
            "rmse": MetricInfo(higher_is_better=False, unit=unit, gain=False),
        }

    def head_output(self) -> nn.Module:
        """Positive whatever the layer gives."""
        from compactmtl.tasks.output_layers import PositiveScale

        return PositiveScale(self.spec.std)

    @property
    def head_bias(self) -> float | None:
        """The inverse of softplus, so that the head starts at the training mean."""
        if not self.spec.mean > 0:
            return None
        ratio = self.spec.mean / self.spec.std
        return ratio + math.log(-math.expm1(-ratio))

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool, of the target's shape."""
        return (target > 0) & target.isfinite()

    def disagreement(self, one: Tensor, other: Tensor) -> Tensor:
        """The difference as a share of the mean of the two, (B, 1, H, W)."""
        return 2 * (one - other).abs() / (one + other)

    def metrics(self) -> DeviationMetrics:
        return DeviationMetrics(self, {"abs_err": "absolute", "rel_err": "relative", "rmse": "root_square"})

    def decode(self, output: Tensor) -> Tensor:
        """The output is in the data's unit already."""
        return output

    @property
    def decoding(self) -> Decoding:
        unit = f"in {self.spec.unit}" if self.spec.unit else "in the data's own unit"
        return Decoding(
            op="none",
            how="take the numbers as they are: they are in the unit, no mean or deviation is left to apply",
            gives=f"{self.kind} of each pixel, {unit}",
        )

    def decode_array(self, output: Array) -> Array:
        return output

    def legend(self, value: Array) -> Legend:
        """The range of the known values, and their median."""
        low, middle, high = (f"{one:.3g} {self.spec.unit}".rstrip() for one in known_range(value))
        return ((None, f"{low} to {high}"), (None, f"median {middle}"))

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        low, middle, high = known_range(value)
        return {"min": low, "median": middle, "max": high, "unit": self.spec.unit}
