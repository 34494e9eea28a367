"""GradVac, gradients brought to similarities that they had before. Source: arXiv:2010.05874."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.options import Unit
from compactmtl.config.schema import Frozen


class GradVac(Aggregated):
    """TorchJD's GradVac, gradients brought to similarities that they had before."""

    class Options(Frozen):
        """`beta`: how fast the target similarities follow."""

        beta: Unit = 0.5

    options: Options
    fixed = True  # it remembers the similarities of the tasks

    def make(self) -> jd.Aggregator:
        return jd.GradVac(self.options.beta)
