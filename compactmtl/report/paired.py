"""A sweep's entries against its baseline seed by seed: what the same seed gives, so that its luck drops out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compactmtl.errors import ConfigError
from compactmtl.report import delta_formats
from compactmtl.report.collect import build_report
from compactmtl.report.delta_table import Entries
from compactmtl.report.model import Report
from compactmtl.report.rows import DeltaRow, PairedRow, Spread, SweepView
from compactmtl.report.table import Row, Table, footnote
from compactmtl.tasks import Task, delta_m
from compactmtl.verify.result import TaskMetrics

if TYPE_CHECKING:
    from compactmtl.report.samples import ValSplits
    from compactmtl.runs import Run


def sweep_report(
    name: str,
    runs: Mapping[str, Sequence[Run]],
    baseline: str | None,
    missing: Mapping[str, Sequence[int]],
    splits: ValSplits,
    against: Mapping[str, str] | None = None,
) -> Report:
    """The report of a sweep: `runs` and seeds that are `missing` by entry. Raises as `build_report`.

    `against` names, for some entries, another beside the baseline that they are held against.
    """
    of = {str(run.path): entry for entry, group in runs.items() for run in group}
    known = baseline if baseline in runs else None
    report = build_report([run for group in runs.values() for run in group], None, splits, Entries(of, known))
    assert report.delta_table is not None
    rows = {row.label: row for row in report.delta_table.rows}
    paired = [
        _paired(row, rows[known], runs[label][0].measured)
        for label, row in rows.items()
        if known is not None and label != known
    ]
    for label, other in (against or {}).items():
        if label in rows and other in rows and other != known:
            difference = _paired(rows[label], rows[other], runs[label][0].measured)
            paired.append(difference and difference.model_copy(update={"against": other}))
    view = SweepView(
        name=name,
        baseline=known,
        paired=tuple(row for row in paired if row is not None),
        missing={entry: tuple(seeds) for entry, seeds in missing.items() if seeds},
    )
    return report.model_copy(update={"sweep": view})


def _paired(row: DeltaRow, base: DeltaRow, tasks: Mapping[str, Task]) -> PairedRow | None:
    """The differences of two rows over the seeds of both; none where no seed has metrics in both."""
    seeds = [seed for seed in row.seeds if seed in base.seeds]
    if not seeds or not row.metrics or not base.metrics:
        return None
    pairs = [(_at(row, seed), _at(base, seed)) for seed in seeds]
    metrics: dict[str, dict[str, Spread]] = {}
    better: dict[str, int] = {}
    shared = {name: task for name, task in tasks.items() if name in base.metrics}
    for name, task in shared.items():
        for metric, info in task.metric_info.items():
            if metric not in row.metrics[name] or metric not in base.metrics[name]:
                continue
            differences = [mine[name][metric] - theirs[name][metric] for mine, theirs in pairs]
            metrics.setdefault(name, {})[metric] = Spread.of(differences)
            sign = 1 if info.higher_is_better else -1
            better[f"{name} {metric}"] = sum(sign * difference > 0 for difference in differences)
    gains = gains_of(pairs, shared)
    if gains is not None:
        better["Δm"] = sum(gain > 0 for gain in gains)
    return PairedRow(
        label=row.label,
        seeds=tuple(seeds),
        metrics=metrics,
        delta_m=None if gains is None else Spread.of(gains),
        better=better,
    )


def _at(row: DeltaRow, seed: int) -> TaskMetrics:
    """A row's metrics at one seed; their mean where several of its runs have it."""
    places = [index for index, own in enumerate(row.seeds) if own == seed]
    return {
        task: {name: statistics.fmean(spread.values[i] for i in places) for name, spread in spreads.items()}
        for task, spreads in row.metrics.items()
    }


def gains_of(
    pairs: Sequence[tuple[TaskMetrics, TaskMetrics]], tasks: Mapping[str, Task]
) -> list[float] | None:
    """Δm of each pair of metrics, of the first against the second; None where it is not defined."""
    if not tasks:
        return None
    try:
        gains = [delta_m(mine, {name: theirs[name] for name in tasks}, tasks) for mine, theirs in pairs]
        return gains if all(math.isfinite(gain) for gain in gains) else None  # the metric's own cell says so
    except ConfigError:  # a baseline of 0; the report's notes say so
        return None


def paired_cells(report: Report) -> Table | None:
    """The paired differences as a plain table, for a terminal, text and Markdown; none without a baseline."""
    view = report.sweep
    if view is None or not view.paired:
        return None
    columns = [
        (task.name, metric, info)
        for task in report.tasks
        for metric, info in task.metrics.items()
        if info.gain and any(metric in row.metrics.get(task.name, {}) for row in view.paired)
    ]
    rows = []
    for row in view.paired:
        cells = [delta_formats.difference(row.delta_m, None, row.better.get("Δm", 0), len(row.seeds))]
        for task, metric, info in columns:
            spread, better = row.metrics.get(task, {}).get(metric), row.better.get(f"{task} {metric}", 0)
            cells.append(delta_formats.difference(spread, info, better, len(row.seeds)))
        label = row.label if row.against is None else f"{row.label}, against {row.against}"
        rows.append(Row(label, tuple(cells)))
    names = ("Δm, % ↑", *(f"{task} {delta_formats.heading(metric, info)}" for task, metric, info in columns))
    caption = (
        f"difference to {view.baseline or 'the other'} with the same seed: mean ± standard deviation over seeds; in "
        "parentheses the number of seeds that are better"
    )
    return Table(names, tuple(rows), caption, footnote(report))
