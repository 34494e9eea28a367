"""COSMOS, a weighted sum and the angle to the preference. Source: arXiv:2103.13392."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.options import NotNegative, PerTask
from compactmtl.balancing.scalarized import Scalarized, shares
from compactmtl.config.schema import Frozen


class COSMOS(Scalarized):
    """TorchJD's COSMOS, a weighted sum and the angle to the preference."""

    class Options(Frozen):
        """`strength` of the cosine between losses and preference."""

        strength: NotNegative = 1.0
        preference: PerTask = None

    options: Options

    def make(self) -> jd.Scalarizer:
        return jd.COSMOS(self.options.strength, shares(self.options.preference, len(self.weights)))
