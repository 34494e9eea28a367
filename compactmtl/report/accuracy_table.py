"""Metrics of one artifact against its own float32 model and against the dense baseline."""

from __future__ import annotations

from dataclasses import replace

from compactmtl.report import format as fmt
from compactmtl.report.model import ExportView, MetricView, Report, RunView
from compactmtl.report.noise import SAME_WEIGHTS, metric_noise
from compactmtl.report.table import NOTHING, Cell, Row, Table, metric_change
from compactmtl.verify.result import TaskMetrics


def accuracy_table(report: Report, run: RunView, export: ExportView) -> Table:
    """A row a metric: dense fp32 where a baseline was named at export, own fp32, the artifact, and both changes."""
    accuracy = export.verification.accuracy
    dense = accuracy.baseline
    columns = ["own fp32", "artifact", "artifact against own fp32"]
    if dense is not None:
        columns = ["dense fp32", *columns, "artifact against dense fp32"]
    rows = []
    for task in report.tasks:
        for metric, info in task.metrics.items():
            if task.name not in accuracy.artifact:
                continue
            own, ours, theirs = (
                _value(values, task.name, metric)
                for values in (accuracy.torch, accuracy.artifact, dense or {})
            )
            cells = [_cell(own, info), _cell(ours, info), _change(ours, own, info, SAME_WEIGHTS)]
            if dense is not None:
                noise = metric_noise(report, run, task.name, metric)
                cells = [_cell(theirs, info), *cells, _change(ours, theirs, info, noise)]
            arrow = "↑" if info.higher_is_better else "↓"
            rows.append(Row(f"{task.name}, {fmt.metric_name(metric)} {arrow}", tuple(cells)))
    where = "samples of the user's own evaluation" if export.own else f"images of the {run.split}"
    caption = f"over {accuracy.samples} {where}; own fp32: the float32 model that was exported"
    return Table(tuple(columns), tuple(rows), caption)


def _value(metrics: TaskMetrics, task: str, metric: str) -> float | None:
    return metrics.get(task, {}).get(metric)


def _cell(value: float | None, info: MetricView) -> Cell:
    return NOTHING if value is None else Cell(fmt.metric(value, info))


def _change(value: float | None, reference: float | None, info: MetricView, noise: str) -> Cell:
    if value is None or reference is None:
        return NOTHING
    cell = metric_change(value, reference, higher_is_better=info.higher_is_better)
    return cell if cell is NOTHING else replace(cell, noise=noise)
