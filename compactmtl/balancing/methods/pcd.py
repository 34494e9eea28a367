"""PCD, progress of the first task under constraints on the others. Source: arXiv:2606.29521."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.balancing.options import Unit
from compactmtl.config.schema import Frozen


class PCD(Aggregated):
    """TorchJD's PCD, progress of the first task under constraints on the others."""

    class Options(Frozen):
        """The first task is the primary one; `tau`: progress of the others, `beta`: memory of the norms."""

        tau: Unit = 0.02
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.999

    options: Options
    reads = "scaled"
    fixed = True  # it remembers the norms of the tasks

    def make(self) -> jd.Aggregator:
        return jd.PCD(self.options.tau, self.options.beta)
