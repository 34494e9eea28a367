"""UPGrad, a projection that conflicts with no task. Source: arXiv:2406.16232."""

from __future__ import annotations

from torchjd import aggregation as jd
from torchjd.linalg import QuadprogProjector

from compactmtl.balancing.aggregated import Aggregated, PreferenceOptions, preference
from compactmtl.balancing.options import NotNegative


class UPGrad(Aggregated):
    """TorchJD's UPGrad, a projection that conflicts with no task."""

    class Options(PreferenceOptions):
        """`reg_eps` is added to the diagonal of the gramian, whose trace is 1."""

        reg_eps: NotNegative = 1e-4

    options: Options

    def make(self) -> jd.Aggregator:
        return jd.UPGrad(preference(self.options), QuadprogProjector(reg_eps=self.options.reg_eps))
