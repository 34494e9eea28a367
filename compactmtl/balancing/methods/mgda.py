"""MGDA, the shortest vector in the gradients' convex hull. Source: Sener and Koltun, NeurIPS 2018."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.config.schema import Frozen, Positive


class MGDA(Aggregated):
    """TorchJD's MGDA, the shortest vector in the gradients' convex hull."""

    class Options(Frozen):
        """Of the Frank-Wolfe solver."""

        epsilon: Positive = 0.001
        max_iters: Annotated[int, Field(ge=1)] = 100

    options: Options

    def make(self) -> jd.Aggregator:
        return jd.MGDA(self.options.epsilon, self.options.max_iters)
