"""Krum, the gradients with the closest neighbors. Source: Blanchard et al., NeurIPS 2017."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.config.schema import Frozen


class Krum(Aggregated):
    """TorchJD's Krum, the gradients with the closest neighbors."""

    class Options(Frozen):
        """`n_byzantine` gradients may be anything, `n_selected` are averaged."""

        n_byzantine: Annotated[int, Field(ge=0)] = 0
        n_selected: Annotated[int, Field(ge=1)] = 1

    options: Options
    fixed = True  # its numbers are of all tasks

    def make(self) -> jd.Aggregator:
        return jd.Krum(self.options.n_byzantine, self.options.n_selected)

    def least(self) -> int:
        return max(self.options.n_byzantine + 3, self.options.n_selected)
