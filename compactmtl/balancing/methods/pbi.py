"""PBI, the distance along and from a preferred direction. Source: Zhang and Li, 2007."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.options import NotNegative, vector
from compactmtl.balancing.scalarized import ReferenceOptions, Scalarized, shares


class PBI(Scalarized):
    """TorchJD's PBI, the distance along and from a preferred direction."""

    class Options(ReferenceOptions):
        """`theta`: penalty on the distance from the preferred direction."""

        theta: NotNegative = 5.0

    options: Options

    def make(self) -> jd.Scalarizer:
        return jd.PBI(
            self.options.theta,
            shares(self.options.preference, len(self.weights)),
            vector(self.options.reference),
        )
