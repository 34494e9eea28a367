"""The drawings of the page: figures of runs and exports, each with words for those who can't see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from compactmtl.artifacts.layout import EXPORT
from compactmtl.report import bars, deployed, deployment, export_figures, figures
from compactmtl.report import format as fmt
from compactmtl.report.accuracy_table import accuracy_table
from compactmtl.report.model import ExportView, Report, RunView
from compactmtl.report.table import Table
from compactmtl.report.task_channels import TaskChannels, task_channels
from compactmtl.report.why import Why, why_not_faster


@dataclass(frozen=True)
class Drawing:
    """An inline figure: its HTML, what it shows in words for those who can't see it, and a caption."""

    body: Markup
    alt: str
    caption: str


@dataclass(frozen=True)
class ExportPage:
    """One export with its anchor, tables and drawings."""

    view: ExportView
    anchor: str
    accuracy: Table
    latency: Drawing
    layer_times: bars.BarChart | None
    why: Why | None
    errors: tuple[export_figures.ErrorPicture, ...]


@dataclass(frozen=True)
class RunPage:
    """One run with its anchor and drawings."""

    view: RunView
    anchor: str
    layers: bars.BarChart | None
    exports: tuple[ExportPage, ...]
    curves: tuple[Drawing, ...]
    sparsity: Drawing | None
    pattern: bars.BarChart | None
    strength: Drawing | None
    competition: tuple[Drawing, ...]
    tasks: TaskChannels | None


def pareto(report: Report) -> Drawing | None:
    """Δm against latency of all exports whose gates held; none below two points."""
    points = deployment.points(report)
    body = deployment.pareto(points)
    if body is None:
        return None
    words = "; ".join(
        f"{one.label} on {one.setting}, {fmt.milliseconds(one.milliseconds)}, {fmt.signed_percent(one.gain)}"
        for one in points
    )
    caption = (
        "Up and to the left is better; a line joins models of one target that no other there beats in both; "
        "exports that failed a gate are left out"
    )
    return Drawing(body, f"Δm against latency: {words}", caption)


def deployed_figures(report: Report) -> list[Drawing]:
    """Δm against latency of a sweep's entries, a drawing a target; none where nothing was timed side by side."""
    drawings = []
    for plane in deployed.planes(report):
        words = "; ".join(one.words for curve in plane.curves.values() for one in curve)
        caption = (
            f"{plane.target}: Δm of the exported files against their latency, means over seeds; up and to the left is "
            "better. A line joins the entries of one method"
        )
        drawings.append(
            Drawing(figures.plane(plane), f"Δm against latency on {plane.target}: {words}", caption)
        )
    return drawings


def run_page(run: RunView, number: int, report: Report) -> RunPage:
    """Everything that is drawn of one run; `number` makes its anchor."""
    anchor = f"run-{number + 1}"
    return RunPage(
        view=run,
        anchor=anchor,
        layers=None if run.surgery is None else bars.layer_costs(run.surgery.layers),
        exports=tuple(
            export_page(report, run, export, f"{anchor}-export-{index + 1}")
            for index, export in enumerate(run.exports)
        ),
        curves=tuple(_curves(run, report)),
        sparsity=_sparsity(run),
        pattern=bars.zero_pattern(run.epochs),
        strength=_strength(run),
        competition=tuple(_competition(run)),
        tasks=task_channels(run),
    )


def export_page(report: Report, run: RunView, export: ExportView, anchor: str) -> ExportPage:
    """Everything that is drawn of one export."""
    folder = Path(run.path) / EXPORT / export.target
    if export.interface is not None:
        folder = Path(export.interface.path)
    verification = export.verification
    words = "; ".join(
        f"{name}, median {fmt.milliseconds(one.median_ms)}, 99th percentile {fmt.milliseconds(one.p99_ms)}"
        for name, one in verification.latency.stats.items()
    )
    return ExportPage(
        view=export,
        anchor=anchor,
        accuracy=accuracy_table(report, run, export),
        latency=Drawing(
            figures.latency_distributions(verification.latency),
            f"Histograms of latency: {words}",
            f"Latency on {export.target}; the line is the median",
        ),
        layer_times=bars.times(verification.measured, export.target),
        why=why_not_faster(verification),
        errors=export_figures.error_pictures(verification, folder),
    )


def _curves(run: RunView, report: Report) -> list[Drawing]:
    """The primary metric of each task over epochs, beside the baseline's."""
    shown = [run] if report.baseline_run in (None, run) else [run, report.baseline_run]
    curves = {one.name: one.epochs for one in shown if one is not None}
    best = {one.name: one.best_epoch for one in shown if one is not None}
    drawings = []
    for task in report.tasks:
        values = [
            epoch.val[task.name][task.primary]
            for epoch in run.epochs
            if task.primary in epoch.val.get(task.name, {})
        ]
        if not values:
            continue
        info = task.metrics[task.primary]
        drawings.append(
            Drawing(
                figures.learning_curves(curves, task, task.primary, best),
                f"{fmt.metric_name(task.primary)} of {task.name} over {len(values)} epochs: "
                f"{fmt.metric(values[0], info)} at first, {fmt.metric(values[-1], info)} at last",
                f"{task.name}: {fmt.metric_name(task.primary)} while training; the ring is the best epoch",
            )
        )
    return drawings


def _competition(run: RunView) -> list[Drawing]:
    """Cosines between task gradients over epochs and by layer, and the spread of the tasks' diagonals."""
    last = next((one.competition for one in reversed(run.epochs) if one.competition is not None), None)
    if last is None:
        return []
    means = "; ".join(f"{pair.replace('|', ' and ')} {last.mean_cosine(pair):+.2f}" for pair in last.pairs)
    layers = len(last.cosines or last.spread)
    drawn = [
        (
            figures.cosine_curves(run.epochs),
            f"Mean cosine between task gradients over epochs; at the last: {means}",
            "Do the tasks pull the shared layers the same way? 1: they do, −1: against each other",
        ),
        (
            figures.cosines_by_layer(last),
            f"Cosine between task gradients in each of {layers} shared layers; the means are {means}",
            "The same in each layer, at the last epoch",
        ),
        (
            figures.spread_by_layer(last),
            f"Standard deviation of the diagonals' entries in each of {layers} layers",
            "How far the tasks' diagonals have moved apart from 1, at the last epoch",
        ),
    ]
    return [Drawing(body, alt, caption) for body, alt, caption in drawn if body is not None]


def _strength(run: RunView) -> Drawing | None:
    body = figures.strength_path(run.epochs)
    if body is None:
        return None
    return Drawing(body, "Strength λ of the penalty over epochs", "λ, the strength of the penalty")


def _sparsity(run: RunView) -> Drawing | None:
    body = figures.sparsity_curve(run.epochs)
    if body is None:
        return None
    last = next(epoch.sparsity for epoch in reversed(run.epochs) if epoch.sparsity is not None)
    share = last.groups_zero
    return Drawing(
        body,
        "Share of channel groups at zero over epochs"
        + ("" if share is None else f"; {100 * share:.0f} % at the last epoch"),
        "Channels that training has brought to zero",
    )
