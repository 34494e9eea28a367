"""The mean of each element without its extremes. Source: Yin et al., ICML 2018."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.config.schema import Frozen


class TrimmedMean(Aggregated):
    """TorchJD's mean of each element without its extremes."""

    class Options(Frozen):
        """`trim`: largest and smallest values left out of each element's mean."""

        trim: Annotated[int, Field(ge=1)] = 1

    options: Options
    reads = "matrix"
    fixed = True  # its number is of all tasks

    def make(self) -> jd.Aggregator:
        return jd.TrimmedMean(self.options.trim)

    def least(self) -> int:
        return 2 * self.options.trim + 1
