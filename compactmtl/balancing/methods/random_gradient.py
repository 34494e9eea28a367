"""Random weights of the gradients. Source: arXiv:2111.10603."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated


class RandomGradient(Aggregated):
    """TorchJD's random weights of the gradients."""

    reads = "root"

    def make(self) -> jd.Aggregator:
        return jd.Random()
