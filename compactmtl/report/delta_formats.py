"""The Δm table as text, Markdown, LaTeX, and cells for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compactmtl.report import format as fmt
from compactmtl.report.model import MetricView, Report
from compactmtl.report.noise import ONE_SEED
from compactmtl.report.rows import DeltaRow, Spread
from compactmtl.report.table import Cell, Row, Table, Tone, footnote

MISSING = Cell("—", "missing")


@dataclass(frozen=True)
class Column:
    """One number of every row. `group` is the task it belongs to, empty for Δm and sizes."""

    group: str
    name: str
    unit: str
    arrow: str
    cells: tuple[Cell, ...]
    best: frozenset[int]  # rows that hold the best mean

    @property
    def heading(self) -> str:
        """Name, unit and which way is better."""
        return f"{self.name}{f', {self.unit}' if self.unit else ''} {self.arrow}"


@dataclass(frozen=True)
class Grid:
    """Labels of the rows, columns, and what the numbers are."""

    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    caption: str
    footnote: str = ""  # what Δm is

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Tasks with how many columns each has, in order; the last columns under an empty name."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


def shows_more(report: Report) -> bool:
    """Whether the Δm table says what the comparison does not: runs over seeds, or single-task networks."""
    table = report.delta_table
    return table is not None and (
        report.sweep is not None
        or bool(report.single_task_runs)
        or any(len(row.runs) > 1 for row in table.rows)
    )


def grid(report: Report) -> Grid:
    """The report's Δm table, formatted: metrics that the papers' tables count, Δm, parameters and MACs.

    Needs `report.delta_table`.
    """
    table = report.delta_table
    assert table is not None
    rows = table.rows
    columns: list[Column] = []
    for task in report.tasks:
        for metric, info in task.metrics.items():
            spreads = [row.metrics.get(task.name, {}).get(metric) for row in rows]
            if info.gain and any(spreads):
                columns.append(_metric_column(task.name, metric, info, spreads))
    if table.reference is not None:
        columns.append(_delta_column(rows))
    for quantity, name in (("parameters", "parameters"), ("macs", "MACs")):
        spreads = [getattr(row, quantity) for row in rows]
        columns.append(_column("", name, "", False, spreads, _counts))
    if any(row.faster for row in rows):
        columns.append(_speed_column(rows))
    columns += _training_columns(report, rows)
    return Grid(tuple(map(_label, rows)), tuple(columns), _caption(report), footnote(report))


def delta_cells(report: Report) -> Table:
    """The Δm table as one plain table, for a terminal, text and Markdown."""
    shown = grid(report)
    rows = tuple(
        Row(label, tuple(column.cells[index] for column in shown.columns))
        for index, label in enumerate(shown.labels)
    )
    names = tuple(f"{column.group} {column.heading}".strip() for column in shown.columns)
    return Table(names, rows, shown.caption, shown.footnote)


def latex(report: Report) -> str:
    """A `tabular` for a paper, best means in bold; needs the package booktabs."""
    shown = grid(report)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {shown.caption}",
        *([f"% {shown.footnote}"] if shown.footnote else []),
        f"\\begin{{tabular}}{{l{'r' * len(shown.columns)}}}",
        "\\toprule",
    ]
    heads, rules, first = [""], [], 2
    for group, span in shown.groups:
        heads.append(f"\\multicolumn{{{span}}}{{c}}{{{_escape(group)}}}")
        if group:
            rules.append(f"\\cmidrule(lr){{{first}-{first + span - 1}}}")
        first += span
    lines += [" & ".join(heads) + " \\\\", " ".join(rules)] if rules else []
    lines.append(" & ".join(["", *(_escape(column.heading) for column in shown.columns)]) + " \\\\")
    lines.append("\\midrule")
    for index, label in enumerate(shown.labels):
        cells = []
        for column in shown.columns:
            text = _escape(column.cells[index].text)
            cells.append(f"\\textbf{{{text}}}" if index in column.best else text)
        lines.append(" & ".join([_escape(label), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def heading(metric: str, info: MetricView) -> str:
    """A metric's name, unit and which way is better."""
    unit = "%" if info.share else info.unit
    arrow = "↑" if info.higher_is_better else "↓"
    return f"{fmt.metric_name(metric)}{f', {unit}' if unit else ''} {arrow}"


def difference(spread: Spread | None, info: MetricView | None, better: int, seeds: int) -> Cell:
    """A paired difference, signed, with how many seeds are better; `info` is none for Δm."""
    if spread is None:
        return MISSING
    if not math.isfinite(spread.mean):
        return Cell(fmt.NO_NUMBER, "missing")
    scale = 100.0 if info is None or info.share else 1.0
    digits = 2 if info is None else max(2, _decimals([scale * value for value in spread.values]) - 1)
    text = _plus_minus(spread, scale, digits)
    sign = 1 if info is None or info.higher_is_better else -1
    shown = round(scale * spread.mean, digits)
    tone: Tone = "" if shown == 0 else "good" if sign * shown > 0 else "bad"
    noise = ONE_SEED if spread.std is None else ""
    return Cell(f"{'+' if shown > 0 else ''}{text} ({better}/{seeds})", tone, noise)


def value(spread: Spread | None, info: MetricView) -> Cell:
    """A metric over seeds."""
    if spread is None:
        return MISSING
    scale = 100.0 if info.share else 1.0
    return Cell(_plus_minus(spread, scale, _decimals([scale * one for one in spread.values])))


def _label(row: DeltaRow) -> str:
    runs = len(row.runs)
    parts = [row.label] + ([row.form] if row.form != "trained" else [])
    return ", ".join([*parts, *([f"{runs} runs"] if runs > 1 else [])])


def _metric_column(task: str, metric: str, info: MetricView, spreads: Sequence[Spread | None]) -> Column:
    scale = 100.0 if info.share else 1.0
    digits = _decimals([scale * spread.mean for spread in spreads if spread is not None])

    def write(spread: Spread) -> str:
        return _plus_minus(spread, scale, digits)

    unit = "%" if info.share else info.unit
    return _column(task, fmt.metric_name(metric), unit, info.higher_is_better, spreads, write)


def _delta_column(rows: Sequence[DeltaRow]) -> Column:
    spreads = [row.delta_m for row in rows]

    def write(spread: Spread) -> str:
        text = _plus_minus(spread, 100.0, 2)
        return f"+{text}" if round(100 * spread.mean, 2) > 0 else text

    column = _column("", "Δm", "%", True, spreads, write)
    cells = []
    for row, cell, spread in zip(rows, column.cells, spreads, strict=True):
        if row.is_baseline:
            cell = Cell("baseline")
        elif spread is not None and round(100 * spread.mean, 2):
            cell = replace(cell, tone="good" if spread.mean > 0 else "bad")
        if spread is not None and spread.std is None and not row.is_baseline:
            cell = replace(cell, noise=ONE_SEED)
        cells.append(cell)
    return replace(column, cells=tuple(cells))


def _training_columns(report: Report, rows: Sequence[DeltaRow]) -> list[Column]:
    """Seconds of training in a sweep; where a run learned from another, epochs and seconds, alone and with the teacher's."""
    taught = any(row.taught for row in rows)
    wanted = [("seconds", "training", "s")] if report.sweep is not None or taught else []
    if taught:
        wanted = [
            ("epochs", "epochs", ""),
            ("all_epochs", "epochs with teacher", ""),
            *wanted,
            ("all_seconds", "training with teacher", "s"),
        ]
    return [
        _column(
            "", name, unit, False, [getattr(row, key) for row in rows], lambda one: _plus_minus(one, 1, 0)
        )
        for key, name, unit in wanted
    ]


def _speed_column(rows: Sequence[DeltaRow]) -> Column:
    """Times faster or slower than the dense model; green or red where every run's rounds say the same."""
    spreads = [row.faster for row in rows]
    column = _column("", "speed", "", True, spreads, lambda one: _plus_minus(one, 1, 2))
    cells = tuple(
        MISSING if row.faster is None else _speed_cell(row.faster, row.verdict, slowed=row.slowed)
        for row in rows
    )
    cells = tuple(
        replace(cell, noise=ONE_SEED) if row.faster is not None and row.faster.std is None else cell
        for row, cell in zip(rows, cells, strict=True)
    )
    return replace(column, cells=cells)


def _speed_cell(spread: Spread, verdict: str, *, slowed: bool) -> Cell:
    if not math.isfinite(spread.mean) or min(spread.values) <= 0:
        return Cell(fmt.NO_NUMBER, "missing")
    if verdict == "same":
        return Cell("no difference beyond noise")
    if verdict == "slower":
        slower = Spread.of([1 / value for value in spread.values])
        return Cell(f"{_plus_minus(slower, 1, 2)}× slower", "bad")
    text = f"{_plus_minus(spread, 1, 2)}×"
    if verdict != "faster":
        return Cell(f"{text}, {verdict}")
    return Cell(f"{text} faster", "" if slowed else "good")


def _column(
    group: str,
    name: str,
    unit: str,
    higher_is_better: bool,
    spreads: Sequence[Spread | None],
    write: Callable[[Spread], str],
) -> Column:
    cells = tuple(MISSING if spread is None else Cell(write(spread)) for spread in spreads)
    means = {
        index: spread.mean
        for index, spread in enumerate(spreads)
        if spread is not None and math.isfinite(spread.mean)
    }
    best = (max if higher_is_better else min)(means.values(), default=math.nan)
    winners = (
        frozenset(index for index, mean in means.items() if mean == best) if len(means) > 1 else frozenset()
    )
    return Column(group, name, unit, "↑" if higher_is_better else "↓", cells, winners)


def _plus_minus(spread: Spread, scale: float, digits: int) -> str:
    if not math.isfinite(spread.mean):
        return fmt.NO_NUMBER
    mean = f"{scale * spread.mean:.{digits}f}"
    if float(mean) == 0:
        mean = mean.lstrip("-")
    text = mean if spread.std is None else f"{mean} ± {scale * spread.std:.{digits}f}"
    return text.replace("-", "−")


def _decimals(values: Sequence[float]) -> int:
    """Decimals that give the largest value four significant digits, as the papers print them; at most four."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 4 if largest < 1 else min(4, max(0, 3 - math.floor(math.log10(largest))))


def _counts(spread: Spread) -> str:
    text = fmt.count(spread.mean)
    return text if not spread.std else f"{text} ± {fmt.count(spread.std)}"


def _caption(report: Report) -> str:
    table = report.delta_table
    assert table is not None
    parts = [f"val split of {report.runs[0].data}"]
    if any(len(row.runs) > 1 for row in table.rows):
        parts.append("mean ± standard deviation over runs")
    if table.reference is not None:
        seeds = " of the same seed" if report.sweep is not None else ""
        parts.append(f"Δm against {table.reference}{seeds}")
    if than := sorted({row.faster_than for row in table.rows if row.faster}):
        parts.append(
            f"speed: latency of {' or '.join(than)} over that of the export, the median over rounds of the ratio in one "
            "round; it counts as noise if its 10–90 % band contains 1"
        )
    if any(row.taught for row in table.rows):
        parts.append(
            "with teacher: a teacher's own training counts in full for every run that learned from it"
        )
    if report.single_task_runs:
        parts.append("sizes of the single-task networks are their sum")
    return "; ".join(parts)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "Δm": r"$\Delta_m$",
    "Δ": r"$\Delta$",
    "°": r"$^\circ$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "—": "---",
    "×": r"$\times$",
}


def _escape(text: str) -> str:
    """Text as LaTeX sets it."""
    pieces, rest = [], text
    while rest:
        symbol = next((one for one in ("Δm", rest[0]) if rest.startswith(one)), rest[0])
        pieces.append(_LATEX.get(symbol, symbol))
        rest = rest[len(symbol) :]
    return "".join(pieces)
