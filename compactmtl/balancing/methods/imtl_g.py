"""IMTL-G, a direction with equal projections onto all gradients. Source: Liu et al., ICLR 2021."""

from __future__ import annotations

from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated


class IMTLG(Aggregated):
    """TorchJD's IMTL-G, a direction with equal projections onto all gradients."""

    def make(self) -> jd.Aggregator:
        return jd.IMTLG()
