"""FairGrad, the direction that is α-fair to the tasks. Source: arXiv:2402.15638."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.options import NotNegative
from compactmtl.config.schema import Frozen


class FairGrad(Aggregated):
    """TorchJD's FairGrad, the direction that is α-fair to the tasks."""

    class Options(Frozen):
        """`alpha`: 0 is the mean, 1 proportional fairness, a large one max-min fairness."""

        alpha: NotNegative = 1.0
        max_iters: Annotated[int, Field(ge=1)] | None = None

    options: Options

    def make(self) -> jd.Aggregator:
        return jd.FairGrad(self.options.alpha, self.options.max_iters)

    def rescaled(self, factors: Tensor, scale: Tensor) -> Tensor:
        if self.options.alpha > 0:
            # G x = x^(-1/α) is not free of scale: (G/s) y = y^(-1/α) has y = s^(α/(1+α)) x
            factors = factors * scale ** (-self.options.alpha / (1 + self.options.alpha))
        return factors
