"""PCGrad, gradients projected off those that they conflict with. Source: arXiv:2001.06782."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated


class PCGrad(Aggregated):
    """TorchJD's PCGrad, gradients projected off those that they conflict with."""

    def make(self) -> jd.Aggregator:
        return jd.PCGrad()
