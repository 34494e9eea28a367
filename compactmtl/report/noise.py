"""How sure a difference is: the spread over seeds, or that there is one seed only, and the band of a paired ratio."""

from __future__ import annotations

import math

from compactmtl.report.model import Report, RunView
from compactmtl.report.rows import DeltaRow, Spread
from compactmtl.verify.result import Speed

ONE_SEED = "1 seed"
SAME_WEIGHTS = "same weights"  # both sides are one trained model, which seeds cannot move apart


def delta_noise(report: Report, run: RunView) -> str:
    """Of a run's Δm: the standard deviation over the seeds of its recipe."""
    row = _row(report, run)
    if row is None or row.delta_m is None or len(row.runs) < 2 or row.delta_m.std is None:
        return ONE_SEED
    return f"± {100 * row.delta_m.std:.1f} over {_count(row, row.delta_m)}"


def metric_noise(report: Report, run: RunView, task: str, metric: str) -> str:
    """Of a relative change of a metric: its standard deviation over the seeds, as a share of the mean."""
    row = _row(report, run)
    spread = None if row is None else row.metrics.get(task, {}).get(metric)
    if row is None or spread is None or spread.std is None or len(row.runs) < 2:
        return ONE_SEED
    if not spread.mean or not math.isfinite(spread.mean):
        return f"{_count(row, spread)}"
    return f"± {100 * spread.std / abs(spread.mean):.1f} over {_count(row, spread)}"


def speed_noise(speed: Speed) -> str:
    """Of a latency's ratio: its 10–90 % band over rounds; as times slower where the ratio is."""
    if speed.low is None or speed.high is None:
        return "no band: too few paired rounds"
    low, high = speed.low, speed.high
    if speed.verdict == "slower":
        low, high = 1 / high, 1 / low
    return f"10–90 %: {low:.2f}–{high:.2f}×"


def seeds_in_words(report: Report, run: RunView) -> str:
    """How many seeds stand behind a run's figures, in a sentence."""
    row = _row(report, run)
    if row is None or len(set(row.seeds)) < 2:
        return f"one seed ({run.provenance.seed}): how far another seed would move it is unknown"
    return f"{len(set(row.seeds))} seeds: {delta_noise(report, run)}"


def _row(report: Report, run: RunView) -> DeltaRow | None:
    rows = report.delta_table.rows if report.delta_table is not None else ()
    return next((row for row in rows if run.name in row.runs and not row.is_baseline), None)


def _count(row: DeltaRow, spread: Spread) -> str:
    runs = len(spread.values)
    return f"{runs} seeds" if len(set(row.seeds)) == len(row.seeds) else f"{runs} runs"
