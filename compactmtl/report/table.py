"""The one comparison table, for the terminal, the report and the README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from compactmtl.report import format as fmt
from compactmtl.report.model import Report, RunView, Stage, TaskView
from compactmtl.report.noise import SAME_WEIGHTS, delta_noise, metric_noise, speed_noise
from compactmtl.verify.result import LatencyResult, LatencyStats
from compactmtl.verify.speed import dense_form, in_words, slowdowns, speed_of, subject_latency

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Tone = Literal["", "good", "bad", "missing"]


@dataclass(frozen=True)
class Cell:
    """Text, what it means (better or worse than the reference, or nothing measured), and how sure a difference is."""

    text: str
    tone: Tone = ""
    noise: str = ""

    @property
    def full(self) -> str:
        """The text with the noise behind it."""
        return f"{self.text} ({self.noise})" if self.noise else self.text


@dataclass(frozen=True)
class Row:
    """A quantity and its value in every column."""

    label: str
    cells: tuple[Cell, ...]
    mark: str = ""  # a word beside the label, such as headline

    @property
    def full(self) -> str:
        """The label with its mark."""
        return f"{self.label} ({self.mark})" if self.mark else self.label


@dataclass(frozen=True)
class Table:
    """Columns after the first, rows, and what the numbers are."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str
    footnote: str = ""  # what a term of the table means


MISSING = Cell(fmt.NOT_RUN, "missing")
NOTHING = Cell("—")


@dataclass(frozen=True)
class _Column:
    """One model of the table: a form of a run."""

    name: str
    run: RunView
    stage: Stage


def comparison(report: Report) -> Table:
    """Per-task primary metric, Δm, parameters, MACs and latency of every run, with change to the reference.

    The reference is the baseline run or, where none was named, each run's own trained form.
    """
    baseline = report.baseline_run
    rows_of = _Rows(report)
    columns: list[str] = []
    cells: list[list[Cell]] = [[] for _ in rows_of.labels]
    if baseline is not None:
        columns.append(baseline.name)
        _extend(cells, rows_of.values(_Column(baseline.name, baseline, baseline.trained)))
    for run in report.subjects:
        lead = "" if len(report.subjects) == 1 else f"{run.name}, "
        reference = _Column(run.name, run, run.trained)
        if baseline is not None:
            reference = _Column(baseline.name, baseline, baseline.trained)
        elif run.final is not run.trained:
            columns.append(f"{lead}trained")
            _extend(cells, rows_of.values(reference))
        subject = _Column(run.name, run, run.final)
        alone = baseline is not None or run.final is run.trained
        columns.append(run.name if alone else f"{lead}{run.final.form}")
        _extend(cells, rows_of.values(subject))
        if subject.stage is not reference.stage:
            columns.append("change")
            _extend(cells, rows_of.changes(subject, reference))
    rows = tuple(Row(label, tuple(row)) for label, row in zip(rows_of.labels, cells, strict=True))
    return Table(tuple(columns), rows, _caption(report), footnote(report))


def footnote(report: Report) -> str:
    """What Δm is, where the report has one."""
    from compactmtl.tasks.gain import definition

    return definition(report.delta_reference) if report.delta_reference else ""


def _extend(cells: list[list[Cell]], column: Sequence[Cell]) -> None:
    for row, cell in zip(cells, column, strict=True):
        row.append(cell)


class _Rows:
    """The quantities of the table, top to bottom."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.tasks = report.tasks
        self.delta_reference = report.delta_reference
        self.baseline = report.baseline
        self.subjects = report.subjects
        self.labels = [
            f"{task.name}, {fmt.metric_name(task.primary)} {arrow(task)}".rstrip() for task in report.tasks
        ] + (["Δm ↑"] if self.delta_reference else [])
        self.labels += ["parameters ↓", "MACs ↓", "latency, median ↓"]

    def values(self, column: _Column) -> list[Cell]:
        stage = column.stage
        cells = [_metric_cell(stage, task) for task in self.tasks]
        if self.delta_reference:
            if column.run.name == self.baseline:
                cells.append(Cell("baseline"))
            elif stage.delta_m is None:
                cells.append(MISSING)
            else:
                gain, noise = stage.delta_m, delta_noise(self.report, column.run)
                cells.append(Cell(fmt.signed_percent(gain), _tone(gain), noise))
        cells.append(Cell(fmt.count(stage.size.parameters)) if stage.size else MISSING)
        cells.append(Cell(fmt.count(stage.size.macs)) if stage.size else MISSING)
        latency = _latency(column, self.subjects)
        if latency is not None:
            cells.append(Cell(fmt.milliseconds(latency.median_ms)))
        elif column.run.current_exports and column.run.shown_export is None:
            cells.append(Cell("gates failed", "bad"))
        elif any(run.current_exports and run.shown_export is None for run in self.subjects):
            cells.append(NOTHING)  # it was timed beside an export that does not count
        else:
            cells.append(MISSING)
        return cells

    def changes(self, subject: _Column, reference: _Column) -> list[Cell]:
        cells = []
        for task in self.tasks:
            cell = _metric_change(subject.stage, reference.stage, task)
            noise = metric_noise(self.report, subject.run, task.name, task.primary)
            if subject.run is reference.run:
                noise = SAME_WEIGHTS
            cells.append(cell if cell is NOTHING else replace(cell, noise=noise))
        if self.delta_reference:
            cells.append(Cell(""))
        sizes = subject.stage.size, reference.stage.size
        for quantity in ("parameters", "macs"):
            if sizes[0] is None or sizes[1] is None:
                cells.append(NOTHING)
            else:
                cells.append(_size_change(getattr(sizes[0], quantity), getattr(sizes[1], quantity)))
        cells.append(_latency_change(subject, reference))
        return cells


def arrow(task: TaskView, metric: str | None = None) -> str:
    """Which way is better."""
    info = task.metrics[metric or task.primary]
    return "↑" if info.higher_is_better else "↓"


def _tone(gain: float, slack: float = 0.0005) -> Tone:
    if abs(gain) <= slack:
        return ""
    return "good" if gain > 0 else "bad"


def _metric_cell(stage: Stage, task: TaskView) -> Cell:
    if stage.metrics is None:
        return MISSING
    metrics = stage.metrics.get(task.name)
    if metrics is None or task.primary not in metrics:
        return NOTHING
    return Cell(fmt.metric(metrics[task.primary], task.metrics[task.primary]))


def metric_change(value: float, reference: float, *, higher_is_better: bool) -> Cell:
    """Relative change of a metric, toned by which way is better."""
    if reference == 0 or not (math.isfinite(value) and math.isfinite(reference)):
        return NOTHING
    change = (value - reference) / abs(reference)
    return Cell(fmt.signed_percent(change), _tone(change if higher_is_better else -change))


def _metric_change(subject: Stage, reference: Stage, task: TaskView) -> Cell:
    ours = (subject.metrics or {}).get(task.name)
    theirs = (reference.metrics or {}).get(task.name)
    if ours is None or theirs is None or task.primary not in ours.keys() & theirs.keys():
        return NOTHING
    info = task.metrics[task.primary]
    return metric_change(ours[task.primary], theirs[task.primary], higher_is_better=info.higher_is_better)


def _size_change(value: int, reference: int) -> Cell:
    if reference == 0 or value == 0:
        return NOTHING
    change = value / reference - 1
    times = (
        f"{fmt.ratio(reference / value)} fewer"
        if value <= reference
        else f"{fmt.ratio(value / reference)} more"
    )
    return Cell(f"{fmt.signed_percent(change)} ({times})" if change else "same", _tone(-change))


def current_latency(run: RunView) -> LatencyResult | None:
    """The latency measured with the run's last current export."""
    export = run.shown_export
    return export.verification.latency if export else None


def _latency(column: _Column, subjects: Sequence[RunView]) -> LatencyStats | None:
    """An exported form's own latency; a dense form's as the reference of the first pairing with it."""
    if column.stage.form == "exported":
        result = current_latency(column.run)
        return subject_latency(result)[1] if result else None
    for run in subjects:
        result = current_latency(run)
        if result is not None and _is_reference(column, run):
            return result.stats[dense_form(result)]
    return None


def _is_reference(column: _Column, subject: RunView) -> bool:
    """Whether `subject` was timed against this model.

    Without a baseline an export is timed against its own run's trained form. With one it holds that model's
    metrics, which tell it: the same weights give the same metrics to float rounding, other weights don't.
    """
    export = subject.shown_export
    if column.stage.form != "trained" or export is None:
        return False
    latency, theirs = export.verification.latency, export.verification.accuracy.baseline
    if subject_latency(latency)[0] == latency.reference:
        return False
    if theirs is None:
        return column.run.path == subject.path
    ours = column.run.trained.metrics
    return ours is not None and all(
        metric in ours.get(task, {}) and math.isclose(ours[task][metric], value, rel_tol=1e-3, abs_tol=1e-6)
        for task, metrics in theirs.items()
        for metric, value in metrics.items()
    )


def _latency_change(subject: _Column, reference: _Column) -> Cell:
    """From the subject's own paired measurement, and only where that was against `reference`."""
    result = current_latency(subject.run)
    if result is None or subject.stage.form != "exported" or not _is_reference(reference, subject.run):
        return NOTHING
    return speed_cell(result, dense_form(result))


def speed_cell(latency: LatencyResult, against: str, name: str | None = None) -> Cell:
    """How much faster a model is than another, the artifact where none is named.

    Green only where the difference is beyond noise, and never for an artifact that its precision made slower.
    """
    subject = subject_latency(latency)[0]
    name = subject if name is None else name
    if against not in latency.stats or name == against:
        return NOTHING
    speed = speed_of(latency, name, against)
    tone: Tone = {"faster": "good", "slower": "bad"}.get(speed.verdict, "")  # type: ignore[assignment]
    if tone == "good" and name == subject and slowdowns(latency):
        tone = ""
    return Cell(in_words(speed), tone, speed_noise(speed))


def _caption(report: Report) -> str:
    parts = []
    sizes = {f"{run.input_size[0]}×{run.input_size[1]}" for run in report.runs}
    parts.append(f"val split of {report.runs[0].data}, input {' and '.join(sorted(sizes))}")
    if report.delta_reference:
        parts.append(f"Δm against {report.delta_reference}")
    results = [result for run in report.subjects if (result := current_latency(run)) is not None]
    if results:
        _, stats = subject_latency(results[0])
        threads = "" if stats.threads is None else f", {stats.threads} thread{'s' * (stats.threads != 1)}"
        parts.append(
            f"latency on {stats.backend} ({stats.provider}, {stats.precision}{threads}), batch {stats.batch}, "
            f"{len(stats.samples_ms)} rounds; a ratio of latencies is the median over rounds of the ratio in one round, and "
            "counts as noise if its 10–90 % band contains 1"
        )
    return "; ".join(parts)


def plain(table: Table) -> str:
    """Aligned text, first column left, others right; the caption below."""
    grid = [["", *table.columns], *([row.full, *(cell.full for cell in row.cells)] for row in table.rows)]
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]
    lines.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join([*lines, "", *_below(table)])


def _below(table: Table) -> list[str]:
    return [table.caption, *([table.footnote] if table.footnote else [])]


def markdown(table: Table) -> str:
    """A Markdown table, numbers right-aligned; the caption below."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    return "\n".join(
        [
            line(["", *table.columns]),
            "| --- |" + " ---: |" * len(table.columns),
            *(line([row.full, *(cell.full for cell in row.cells)]) for row in table.rows),
            "",
            "\n\n".join(_below(table)),
        ]
    )


def rich_table(table: Table) -> RichTable:
    """For a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"": "", "good": "green", "bad": "red", "missing": "dim"}
    drawn = RichTable(box=box.SIMPLE_HEAD, caption=Text("\n".join(_below(table))), caption_justify="left")
    drawn.add_column("")
    for column in table.columns:
        drawn.add_column(Text(column), justify="right")
    for row in table.rows:
        drawn.add_row(Text(row.full), *(Text(cell.full, style=styles[cell.tone]) for cell in row.cells))
    return drawn
