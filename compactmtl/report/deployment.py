"""Runs on targets: what was verified, what failed, what was not run and why, and speed against accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup, escape

from compactmtl.artifacts.files import parse_json
from compactmtl.artifacts.layout import EXPORT, PREPARED_FILE, VERIFICATION_FILE
from compactmtl.report import format as fmt
from compactmtl.report.charts import Line, Mark, axis, legend, plot
from compactmtl.report.gates import not_set, status
from compactmtl.report.model import ExportView, PreparedView, Report, RunView, shown_target
from compactmtl.report.noise import delta_noise
from compactmtl.report.table import MISSING, Cell, Row, Table, footnote, speed_cell
from compactmtl.verify.result import SINGLE
from compactmtl.verify.speed import dense_form, is_lowered, slowdowns, subject_latency, told, variation

UNSTEADY = 0.25  # distance of the quartiles / median; an idle machine stays well below a tenth
SHAPES = ("disc", "square", "diamond", "ring")  # one a model


@dataclass(frozen=True)
class Point:
    """One deployed model in the plane of speed and accuracy."""

    label: str
    setting: str  # target
    milliseconds: float
    gain: float  # Δm


def prepared_views(run: Path) -> tuple[PreparedView, ...]:
    """Targets that a run was prepared for and not run on; a damaged file counts as such, with that as its reason."""
    views = []
    for path in sorted((run / EXPORT).glob(f"*/{PREPARED_FILE}")):
        if path.with_name(VERIFICATION_FILE).exists():
            continue
        built = ""
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            reason, built = str(content["reason"]), str(content.get("built", ""))
        except (ValueError, KeyError, TypeError):
            reason = f"{path} is damaged"
        views.append(PreparedView(target=path.parent.name, reason=reason, built=built))
    return tuple(views)


def doubts(name: str, view: ExportView) -> list[str]:
    """What a reader of an export's latencies has to know: that they vary too much, or that its precision lost time."""
    latency, notes = view.verification.latency, []
    spread = max((variation(stats.samples_ms) for stats in latency.stats.values()), default=0.0)
    if spread > UNSTEADY:
        notes.append(
            f"{name}: latencies on {view.target} vary: the distance of their quartiles is {100 * spread:.0f} % of the median. "
            "Measure again on an idle machine before you rely on them"
        )
    for speed in slowdowns(latency):
        stats = latency.stats
        notes.append(
            f"{name}: on {view.target} {stats[speed.name].precision} is {told(speed)} "
            f"({stats[speed.name].median_ms:.3g} against {stats[speed.against].median_ms:.3g} ms)"
        )
    return notes


def deployments(report: Report) -> Table | None:
    """Every run on every target that any of them was exported or prepared for; none without such a target."""
    runs = report.subjects
    named = [[one.target for one in run.exports] + [one.target for one in run.prepared] for run in runs]
    targets = list(dict.fromkeys(target for some in named for target in some))
    if not targets:
        return None
    rows = []
    for run in runs:
        headline = shown_target([run])
        for target in targets:
            label = target if len(runs) == 1 else f"{run.name}, {target}"
            mark = "headline" if target == headline else ""
            rows.append(Row(label, _cells(report, run, target), mark))
    lowered = any(is_lowered(export.verification.latency) for run in runs for export in run.exports)
    if not lowered:
        rows = [replace(row, cells=(*row.cells[:5], *row.cells[-2:])) for row in rows]
    columns = (
        "gates",
        "precision",
        "Δm ↑",
        "latency, median ↓",
        "against dense fp32",
        *(_LOWERED if lowered else ()),
        "size ↓",
        "no gate on",
    )
    caption = (
        "against dense fp32: the dense model on the same target in float32; a ratio is the median over rounds of the "
        "ratio in one round, with its 10–90 % band, and counts as noise if the band contains 1"
    )
    return Table(columns, tuple(rows), caption, footnote(report))


_LOWERED = ("against dense in this precision", "against itself in fp32")


def _cells(report: Report, run: RunView, target: str) -> tuple[Cell, ...]:
    export = next((one for one in run.exports if one.target == target), None)
    if export is None:
        why = next((one.reason for one in run.prepared if one.target == target), "")
        return (
            Cell(f"{fmt.NOT_RUN}: {why}" if why else fmt.NOT_RUN, "missing"),
            *(MISSING for _ in range(8)),
        )
    verification = export.verification
    name, stats = subject_latency(verification.latency)
    gain = _gain(run, export)
    dense = dense_form(verification.latency)
    in_precision = verification.latency.reference if dense != verification.latency.reference else ""
    speeds = [speed_cell(verification.latency, one) for one in (dense, in_precision, name + SINGLE)]
    return (
        status(export),
        Cell(stats.precision),
        MISSING if gain is None else Cell(fmt.signed_percent(gain), noise=delta_noise(report, run)),
        Cell(fmt.milliseconds(stats.median_ms)),
        *(
            speeds
            if export.holds
            else (replace(one, tone="bad" if one.tone == "bad" else "") for one in speeds)
        ),
        Cell(f"{verification.megabytes:.2f} MB"),
        not_set(export),
    )


def _gain(run: RunView, export: ExportView) -> float | None:
    return next((stage.delta_m for stage in run.stages if stage.key == export.stage), None)


def points(report: Report) -> list[Point]:
    """Every export whose gates held and whose Δm is known, and, once a target, the dense model that it was timed against, at Δm 0.

    The dense model is the reference of Δm only where that is the report's baseline.
    """
    shown: list[Point] = []
    dense: set[str] = set()
    for run in report.subjects:
        for export in run.exports:
            gain = _gain(run, export)
            latency = export.verification.latency
            name, stats = subject_latency(latency)
            if gain is None or not export.holds:
                continue
            shown.append(Point(run.name, export.target, stats.median_ms, gain))
            if report.baseline is not None and name != latency.reference and export.target not in dense:
                dense.add(export.target)
                reference = latency.stats[dense_form(latency)]
                if is_lowered(latency) and reference.precision != "fp32":
                    continue  # the dense model in lower precision has metrics of its own, which nobody measured
                shown.append(Point(report.baseline, export.target, reference.median_ms, 0.0))
    return shown


def front(shown: Sequence[Point]) -> list[Point]:
    """The points that no other is both faster and better than, from the fastest on."""
    best: list[Point] = []
    for point in sorted(shown, key=lambda one: (one.milliseconds, -one.gain)):
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def pareto(shown: Sequence[Point]) -> Markup | None:
    """Δm against latency: a color a target, a shape a model, a line along each target's front; none below two points."""
    if len(shown) < 2:
        return None
    models = list(dict.fromkeys(one.label for one in shown))
    targets = list(dict.fromkeys(one.setting for one in shown))
    x = axis([one.milliseconds for one in shown], "latency, median, ms", margin=0.08)
    y = axis([100 * one.gain for one in shown] + [0.0], "Δm (%)", margin=0.12)
    lines, marks = [], []
    for number, target in enumerate(targets):
        group = [one for one in shown if one.setting == target]
        edge = [(one.milliseconds, 100 * one.gain) for one in front(group)]
        lines.append(Line(target, edge, number, step=True))
        marks += [
            Mark(
                one.milliseconds,
                100 * one.gain,
                number,
                SHAPES[models.index(one.label) % len(SHAPES)],
                f"{one.label} on {target}: {fmt.milliseconds(one.milliseconds)}, {fmt.signed_percent(one.gain)}",
            )
            for one in group
        ]
    shapes = "".join(
        f'<span><i class="sign {SHAPES[number % len(SHAPES)]}"></i>{escape(model)}</span>'
        for number, model in enumerate(models)
    )
    return (
        Markup(f'<p class="legend">{shapes}</p>')
        + legend([(target, number) for number, target in enumerate(targets)])
        + plot(x, y, lines=lines, marks=marks, base=0.0, height=300)
    )
