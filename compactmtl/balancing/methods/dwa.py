"""DWA, weights by the rate at which each loss fell over the last two epochs. Source: arXiv:1803.10704."""

from __future__ import annotations

from torchjd import scalarization as jd

from compactmtl.balancing.scalarized import Scalarized
from compactmtl.config.schema import Frozen, Positive


class DWA(Scalarized):
    """TorchJD's DWA, weights by the rate at which each loss fell over the last two epochs."""

    class Options(Frozen):
        """`temperature`: a larger one makes the weights more alike."""

        temperature: Positive = 2.0

    options: Options

    def make(self) -> jd.Scalarizer:
        return jd.DWA(self.options.temperature)

    def end_epoch(self) -> None:
        assert isinstance(self.scalarizer, jd.DWA)
        self.scalarizer.step()
