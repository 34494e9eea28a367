"""A sweep's entries on the split that their epochs were chosen on: what settings are compared by, so that val stays untouched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compactmtl.report import delta_formats
from compactmtl.report.model import Report
from compactmtl.report.paired import gains_of
from compactmtl.report.rows import Spread
from compactmtl.report.table import Cell, Row, Table, footnote

if TYPE_CHECKING:
    from compactmtl.runs import Run
    from compactmtl.verify.result import TaskMetrics


def selection_cells(report: Report, runs: Mapping[str, Sequence[Run]]) -> Table | None:
    """Main metrics and Δm to the baseline with the same seed, as trained; none where val chose the epochs.

    `runs` are the finished ones by entry.
    """
    splits = {run.recipe.data.select_on for group in runs.values() for run in group}
    if report.sweep is None or len(splits) != 1 or splits == {"val"}:
        return None
    measured = {entry: {run.recipe.seed: run.best for run in group} for entry, group in runs.items()}
    baseline = report.sweep.baseline
    base = measured.get(baseline, {}) if baseline is not None else {}
    shown = [
        (task.name, task.primary, task.metrics[task.primary])
        for task in report.tasks
        if task.primary in task.metrics
    ]
    rows = []
    for entry, by_seed in measured.items():
        pairs = [(metrics, base[seed]) for seed, metrics in by_seed.items() if seed in base]
        cells = [Cell("baseline") if entry == baseline else _gain(pairs, runs[entry][0])]
        for task, metric, info in shown:
            values = [one[task][metric] for one in by_seed.values() if metric in one.get(task, {})]
            spread = Spread.of(values) if len(values) == len(by_seed) else None
            cells.append(delta_formats.value(spread, info))
        rows.append(Row(entry, tuple(cells)))
    columns = ("Δm, % ↑", *(f"{task} {delta_formats.heading(metric, info)}" for task, metric, info in shown))
    caption = (
        f"the best epoch on the {splits.pop()} split, as trained: settings are compared here, not on val; mean ± standard "
        "deviation over seeds"
    )
    return Table(columns, tuple(rows), caption, footnote(report))


def _gain(pairs: Sequence[tuple[TaskMetrics, TaskMetrics]], run: Run) -> Cell:
    if not pairs:
        return delta_formats.MISSING
    gains = gains_of(pairs, {name: task for name, task in run.measured.items() if name in pairs[0][1]})
    if gains is None:
        return delta_formats.MISSING
    return delta_formats.difference(Spread.of(gains), None, sum(gain > 0 for gain in gains), len(gains))
