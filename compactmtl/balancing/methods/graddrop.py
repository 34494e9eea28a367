"""GradDrop, one sign at random for each element. Source: arXiv:2010.06808."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.options import Unit, vector
from compactmtl.config.schema import Frozen


class GradDrop(Aggregated):
    """TorchJD's GradDrop, one sign at random for each element."""

    class Options(Frozen):
        """`leak`: share of each task's gradient that is never dropped, in the order of the tasks."""

        leak: tuple[Unit, ...] | None = None

    options: Options
    reads = "matrix"

    def make(self) -> jd.Aggregator:
        return jd.GradDrop(leak=vector(self.options.leak))
