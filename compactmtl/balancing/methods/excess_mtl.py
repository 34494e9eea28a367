"""ExcessMTL, tasks weighted by their excess risk. Source: He et al., ICML 2024."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torchjd import aggregation as jd

from compactmtl.balancing.aggregated import Aggregated
from compactmtl.config.schema import Frozen, Positive


class ExcessMTL(Aggregated):
    """TorchJD's ExcessMTL, tasks weighted by their excess risk."""

    class Options(Frozen):
        """`step`: of the weights; `warmup_steps` with equal weights, which set the baseline."""

        step: Positive = 1.0
        warmup_steps: Annotated[int, Field(ge=0)] = 0

    options: Options
    reads = "matrix"
    by_samples = False
    fixed = True  # it remembers the squared gradients of the tasks

    def make(self) -> jd.Aggregator:
        return jd.ExcessMTL(self.options.step, self.options.warmup_steps)
