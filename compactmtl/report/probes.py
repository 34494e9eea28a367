"""Probes of several runs as tables: one a task, a row for each group of runs, mean and deviation over it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.report.table import NOTHING, Cell, Row, Table

if TYPE_CHECKING:
    from compactmtl.runs.probe import Probe, TaskProbe

_SEED = re.compile(r"[-_]?seed[-_]?\d+$")


def group_name(path: Path) -> str:
    """The name that runs of other seeds share: the folder of a sweep's entry, or the run's without its seed."""
    folder = path.resolve()
    return _SEED.sub("", folder.name) or folder.parent.name


def probe_tables(groups: Mapping[str, Sequence[Probe]]) -> list[Table]:
    """One table a task; a row is a group of probes that differ in the seed. Groups keep their order."""
    tasks = list(
        dict.fromkeys(task for probes in groups.values() for probe in probes for task in probe.tasks)
    )
    return [_table(task, groups) for task in tasks]


def _table(task: str, groups: Mapping[str, Sequence[Probe]]) -> Table:
    by_group = {
        name: [probe.tasks[task] for probe in probes if task in probe.tasks]
        for name, probes in groups.items()
    }
    first = next(probes[0] for probes in by_group.values() if probes)
    share = first.metric == "accuracy"
    names = list(
        dict.fromkeys(name for probes in by_group.values() for probe in probes for name in probe.scores)
    )
    arrow = "↑" if share else "↓"
    columns = [f"{name} {arrow}" for name in names] + ["own loss", "random loss", "gap ↓", "gradient norm ↓"]
    rows = []
    for label, probes in by_group.items():
        cells = [_cell([p.scores[name] for p in probes if name in p.scores], percent=share) for name in names]
        rows.append(Row(label, (*cells, *_gap_cells(probes))))
    return Table(
        tuple(columns),
        tuple(rows),
        f"{task}: {first.metric} on val of predictors fitted on the frozen features of train, and the loss gap of "
        f"arXiv:2409.16651, theorem 1; mean ± deviation over {_counts(by_group)} runs",
    )


def _gap_cells(probes: Sequence[TaskProbe]) -> list[Cell]:
    gaps = [probe.gap for probe in probes if probe.gap is not None]
    columns = [
        [gap.optimal for gap in gaps],
        [gap.arbitrary for gap in gaps],
        [gap.gap for gap in gaps],
        [gap.gradient_norm for gap in gaps],
    ]
    return [_cell(values) for values in columns]


def _cell(values: Sequence[float], *, percent: bool = False) -> Cell:
    if not values:
        return NOTHING
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) if len(values) > 1 else None
    if percent:
        return Cell(f"{mean:.2%}" + ("" if spread is None else f" ± {100 * spread:.2f}"))
    return Cell(f"{mean:.4g}" + ("" if spread is None else f" ± {spread:.2g}"))


def _counts(by_group: Mapping[str, Sequence[TaskProbe]]) -> str:
    counts = sorted({len(probes) for probes in by_group.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
