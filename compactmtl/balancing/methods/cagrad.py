"""CAGrad, the best worst task within a ball around the mean. Source: arXiv:2110.14048."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.options import NotNegative
from compactmtl.config.schema import Frozen


class CAGrad(Aggregated):
    """TorchJD's CAGrad, the best worst task within a ball around the mean."""

    class Options(Frozen):
        """`c`: radius of the ball around the mean gradient, as a share of its norm."""

        c: NotNegative = 0.4

    options: Options

    def make(self) -> jd.Aggregator:
        return jd.CAGrad(self.options.c)
