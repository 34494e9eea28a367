"""Rows of a report's tables over seeds and entries, as data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import ConfigDict

from compactmtl.config.schema import Frozen as Strict
from compactmtl.verify.result import Verdict


class Frozen(Strict):
    """A part of the report. A value that is no number is the JSON string "NaN", "Infinity" or "-Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Spread(Frozen):
    """One number over the runs of a recipe: mean, sample standard deviation (none for one run), and each run's."""

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value. A value that is no number makes the mean none: nothing is left out."""
        if not all(math.isfinite(value) for value in values):
            return cls(mean=math.nan, std=None, values=tuple(values))
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), std=std, values=tuple(values))


class PairedRow(Frozen):
    """One entry of a sweep against another, seed by seed: differences entry − other over the seeds of both.

    `better` counts the seeds at which the entry is the better of the two, for Δm and each metric.
    """

    label: str
    seeds: tuple[int, ...]
    metrics: dict[str, dict[str, Spread]]
    delta_m: Spread | None
    better: dict[str, int]  # "Δm" or "task metric"
    against: str | None = None  # the entry that it is held against, where that is not the baseline


class DeployedRow(Frozen):
    """One entry of a sweep as it is deployed on one target, over the seeds whose exports were timed side by side.

    `metrics` and Δm are of the exported file, Δm against the baseline as trained with the same seed. `speedup` is the
    latency of the baseline's export on the same target over this one's, paired round by round.
    """

    label: str
    target: str
    series: str
    precision: str
    seeds: tuple[int, ...]
    milliseconds: Spread
    speedup: Spread | None  # none: of the baseline, or there is none
    delta_m: Spread | None
    better: int  # seeds at which Δm is above 0
    delta_seeds: tuple[int, ...]
    failed_gates: tuple[int, ...] = ()  # seeds at which a gate failed
    is_baseline: bool = False


class SweepView(Frozen):
    """What a sweep adds to a report: which entry is the baseline, paired differences, and runs that did not finish."""

    name: str
    baseline: str | None
    paired: tuple[PairedRow, ...]
    missing: dict[str, tuple[int, ...]]  # entry -> seeds without a finished run
    deployed: tuple[DeployedRow, ...] = ()
    timed: str = ""  # on what the latencies of `deployed` were measured, and when


class DeltaRow(Frozen):
    """One recipe over its seeds. `values` of every spread are in the order of `runs`.

    The row of single-task networks holds each task's own runs, so only there does the order differ; its sizes are
    those of all the networks together.
    """

    label: str
    form: str  # which form of the model was measured, such as trained
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, dict[str, Spread]]
    delta_m: Spread | None
    parameters: Spread | None
    macs: Spread | None
    is_baseline: bool = False  # what Δm is against
    delta_seeds: tuple[int, ...] = ()  # of the runs in `delta_m`, where the baseline lacks some of the seeds
    faster: Spread | None = None  # latency of `faster_than` / of the export, paired round by round
    faster_than: str = ""  # such as dense, or dense fp32 where the export is of lower precision
    verdict: Verdict | Literal["mixed"] = "unknown"  # of `faster`: what every run's rounds say
    slowed: bool = False  # whether an export of lower precision is slower than its own float32 form
    seconds: Spread | None = None  # of training, validation apart
    epochs: Spread | None = None  # none: of single-task networks
    taught: bool = False  # whether a run of it learned from another run
    all_seconds: Spread | None = None  # with the teachers' training; none: unknown
    all_epochs: Spread | None = None


class DeltaTable(Frozen):
    """The papers' table: recipes by metrics, Δm and size, each as mean and deviation over seeds.

    `reference` says what Δm is against; where that is among the runs, it is the first row.
    """

    reference: str | None
    rows: tuple[DeltaRow, ...]
