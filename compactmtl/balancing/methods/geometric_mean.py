"""The geometric mean of the losses. Source: Chennupati et al., CVPRW 2019."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.scalarized import Scalarized


class GeometricMean(Scalarized):
    """TorchJD's geometric mean of the losses."""

    positive = True

    def make(self) -> jd.Scalarizer:
        return jd.GeometricMean()
