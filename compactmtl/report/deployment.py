"""Runs on targets: what was verified, what failed, what was not run and why, and speed against accuracy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compactmtl.report import figures
from compactmtl.report import format as fmt
from compactmtl.report.gates import not_set, status
from compactmtl.report.model import ExportView, PreparedView, Report, RunView, shown_target
from compactmtl.report.noise import delta_noise
from compactmtl.report.table import MISSING, Cell, Row, Table, footnote, speed_cell
from compactmtl.verify.result import SINGLE
from compactmtl.verify.speed import dense_form, is_lowered, slowdowns, subject_latency, told, variation

UNSTEADY = 0.25  # distance of the quartiles / median; an idle machine stays well below a tenth
MARKERS = "os^DvPX*"  # one a model


@dataclass(frozen=True)
class Point:
    """One deployed model in the plane of speed and accuracy."""

    label: str
    setting: str  # target
    milliseconds: float
    gain: float  # Δm


def prepared_views(run: Path) -> tuple[PreparedView, ...]:
    """Targets that a run was prepared for and not run on; a damaged file counts as such, with that as its reason."""
    found = []
    for path in sorted((run / "export").glob("*/prepared.json")):
        if path.with_name("verification.json").exists():
            continue
        try:
            reason = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
        except (ValueError, KeyError, TypeError):
            reason = f"{path} is damaged"
        found.append(PreparedView(target=path.parent.name, reason=reason))
    return tuple(found)


def doubts(name: str, view: ExportView) -> list[str]:
    """What a reader of an export's latencies has to know: that they vary too much, or that its precision lost time."""
    latency, notes = view.verification.latency, []
    spread = max((variation(stats.samples_ms) for stats in latency.stats.values()), default=0.0)
    if spread > UNSTEADY:
        notes.append(
            f"{name}: the middle half of the latencies on {view.target} is spread over {spread:.0%} of the median; "
            "measure again on an idle machine before you rely on them"
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
        rows = [replace(row, cells=(*row.cells[:6], row.cells[-1])) for row in rows]
    columns = (
        "gates",
        "no gate on",
        "precision",
        "Δm ↑",
        "latency, median ↓",
        "against dense fp32",
        *(_LOWERED if lowered else ()),
        "size ↓",
    )
    caption = (
        "against dense fp32: the dense model on the same target in float32; the ratio is the median over rounds of the "
        "ratio in one round, with its 10–90 % band; noise where the band holds 1"
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
    found = export.verification
    name, stats = subject_latency(found.latency)
    gain = _gain(run, export)
    dense = dense_form(found.latency)
    in_precision = found.latency.reference if dense != found.latency.reference else ""
    speeds = [speed_cell(found.latency, one) for one in (dense, in_precision, name + SINGLE)]
    return (
        status(export),
        not_set(export),
        Cell(stats.precision),
        MISSING if gain is None else Cell(fmt.signed_percent(gain), noise=delta_noise(report, run)),
        Cell(fmt.milliseconds(stats.median_ms)),
        *(
            speeds
            if export.holds
            else (replace(one, tone="bad" if one.tone == "bad" else "") for one in speeds)
        ),
        Cell(f"{found.megabytes:.2f} MB"),
    )


def _gain(run: RunView, export: ExportView) -> float | None:
    label = f"exported, {export.target}"
    return next((stage.delta_m for stage in run.stages if stage.label == label), None)


def points(report: Report) -> list[Point]:
    """Every export whose gates held and whose Δm is known, and, once a target, the dense model that it was timed against, at Δm 0.

    The dense model is the reference of Δm only where that is the report's baseline.
    """
    found: list[Point] = []
    dense: set[str] = set()
    for run in report.subjects:
        for export in run.exports:
            gain = _gain(run, export)
            latency = export.verification.latency
            name, stats = subject_latency(latency)
            if gain is None or not export.holds:
                continue
            found.append(Point(run.name, export.target, stats.median_ms, gain))
            if report.baseline is not None and name != latency.reference and export.target not in dense:
                dense.add(export.target)
                reference = latency.stats[dense_form(latency)]
                if is_lowered(latency) and reference.precision != "fp32":
                    continue  # the dense model in lower precision has metrics of its own, which nobody measured
                found.append(Point(report.baseline, export.target, reference.median_ms, 0.0))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other is both faster and better than, from the fastest on."""
    best: list[Point] = []
    for point in sorted(found, key=lambda one: (one.milliseconds, -one.gain)):
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def pareto(found: Sequence[Point], key: str) -> str | None:
    """Δm against latency, a color a target, a marker a model, a line through each target's front; none below two points."""
    if len(found) < 2:
        return None
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    models = list(dict.fromkeys(one.label for one in found))
    markers = dict(zip(models, itertools.cycle(MARKERS), strict=False))
    by_target: Mapping[str, list[Point]] = {
        setting: [one for one in found if one.setting == setting]
        for setting in dict.fromkeys(one.setting for one in found)
    }
    handles = [
        Line2D([], [], color=figures.INK, marker=marker, linestyle="none", label=model)
        for model, marker in markers.items()
    ]
    with figures.style(key):
        height = 3.2 + 0.2 * ((len(by_target) + 1) // 2 + (len(models) + 1) // 2)
        figure = Figure(figsize=(figures.WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        for color, (setting, group) in zip(figures.cycle(len(by_target)), by_target.items(), strict=True):
            edge = front(group)
            axes.plot(
                [one.milliseconds for one in edge],
                [100 * one.gain for one in edge],
                color=color,
                linewidth=1.2,
                drawstyle="steps-post",
                alpha=0.6,
            )
            for one in group:
                axes.plot(
                    one.milliseconds, 100 * one.gain, color=color, marker=markers[one.label], markersize=7
                )
            handles.append(Line2D([], [], color=color, linewidth=3, label=setting))
        axes.margins(0.1, 0.15)
        axes.set_xlabel("latency, median, ms")
        axes.set_ylabel("Δm (%)")
        axes.axhline(0, color=figures.INK, alpha=0.3, linewidth=0.6)
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        return figures.svg(figure, key)
