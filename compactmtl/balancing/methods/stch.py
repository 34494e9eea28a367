"""STCH, a smooth maximum of the weighted losses. Source: arXiv:2402.19078."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.options import vector
from compactmtl.balancing.scalarized import ReferenceOptions, Scalarized
from compactmtl.config.schema import Positive


class STCH(Scalarized):
    """TorchJD's STCH, a smooth maximum of the weighted losses."""

    class Options(ReferenceOptions):
        """`mu`: smoothing; a smaller one is nearer to the largest weighted loss."""

        mu: Positive = 1.0

    options: Options

    def make(self) -> jd.Scalarizer:
        return jd.STCH(self.options.mu, vector(self.options.preference), vector(self.options.reference))
