"""Random weights of the losses. Source: arXiv:2111.10603."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.scalarized import Scalarized


class Random(Scalarized):
    """TorchJD's random weights of the losses."""

    def make(self) -> jd.Scalarizer:
        return jd.Random()
