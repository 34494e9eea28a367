"""What kinds that learn one number an image share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compactmtl.tasks.base import Array, MetricInfo, ValueTask
from compactmtl.tasks.deviation import DeviationMetrics
from compactmtl.tasks.summaries import value_text

if TYPE_CHECKING:
    from torch import Tensor


class ScalarTask(ValueTask):
    """A number (B,) in the target's unit; a target that is not finite is unknown.

    Metrics, exact over the split, in the unit: `mae`, `rmse`.
    """

    target_kind = "scalar"
    primary = "mae"
    mixup = "target"
    sureness = "mirror"

    @property
    def metric_info(self) -> Mapping[str, MetricInfo]:
        unit = self.spec.unit
        return {
            "mae": MetricInfo(higher_is_better=False, unit=unit),
            "rmse": MetricInfo(higher_is_better=False, unit=unit, gain=False),
        }

    @property
    def in_unit(self) -> str:
        """Its unit as a phrase, such as "in years"."""
        return f"in {self.spec.unit}" if self.spec.unit else "in the data's own unit"

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool (B,)."""
        return target.isfinite()

    def disagreement(self, one: Tensor, other: Tensor) -> Tensor:
        """In the unit, (B,)."""
        return (one - other).abs()

    def metrics(self) -> DeviationMetrics:
        return DeviationMetrics(self, {"mae": "absolute", "rmse": "root_square"})

    def caption(self, value: Array) -> str:
        return value_text(float(value), self.spec.unit)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        return {"value": float(value), "unit": self.spec.unit}
