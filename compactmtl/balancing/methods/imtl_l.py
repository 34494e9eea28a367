"""IMTL-L, losses brought to one scale by learned factors. Source: Liu et al., ICLR 2021."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.scalarized import Scalarized


class IMTLL(Scalarized):
    """TorchJD's IMTL-L, losses brought to one scale by learned factors."""

    def make(self) -> jd.Scalarizer:
        return jd.IMTLL(len(self.weights))
