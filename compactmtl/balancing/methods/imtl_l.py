"""IMTL-L, losses brought to one scale by learned factors. Source: Liu et al., ICLR 2021."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchjd import scalarization as jd

from compactmtl.balancing.scalarized import Scalarized


class IMTLL(Scalarized):
    """TorchJD's IMTL-L, losses brought to one scale by learned factors; a batch that knows nothing of a task (its loss
    is 0) leaves the task's factor alone."""

    def make(self) -> jd.Scalarizer:
        return jd.IMTLL(len(self.weights))

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(self.scalarizer, jd.IMTLL)
        unknown = self.weighted(losses).detach() == 0
        # e^s·L - s would raise s without an end where L is 0
        return super()._combine(losses) + (self.scalarizer.log_scale * unknown).sum()
