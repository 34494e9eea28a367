"""The drawings of the page: figures of runs and exports, each with words for those who can't see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from compactmtl.report import bars, deployment, export_figures, figures, sparsity_figures
from compactmtl.report import format as fmt
from compactmtl.report.accuracy_table import accuracy_table
from compactmtl.report.model import ExportView, Report, RunView
from compactmtl.report.table import Table


@dataclass(frozen=True)
class Drawing:
    """An inline figure: its SVG, what it shows in words for those who can't see it, and a caption."""

    svg: Markup
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
    pattern: Drawing | None
    strength: Drawing | None
    competition: tuple[Drawing, ...]


def pareto(report: Report) -> Drawing | None:
    """Δm against latency of all exports whose gates held; none below two points."""
    found = deployment.points(report)
    svg = deployment.pareto(found, "pareto")
    if svg is None:
        return None
    told = "; ".join(
        f"{one.label} on {one.setting}, {fmt.milliseconds(one.milliseconds)}, {fmt.signed_percent(one.gain)}"
        for one in found
    )
    caption = (
        "Up and to the left is better; a line joins models of one target that no other there beats in both; "
        "exports that failed a gate are left out"
    )
    return Drawing(Markup(svg), f"Δm against latency: {told}", caption)


def run_page(run: RunView, number: int, report: Report) -> RunPage:
    """Everything that is drawn of one run; `number` makes the ids of its figures."""
    key = f"run{number}"
    return RunPage(
        view=run,
        anchor=f"run-{number + 1}",
        layers=None if run.surgery is None else bars.layer_costs(run.surgery.layers),
        exports=tuple(
            _export_page(report, run, export, f"run-{number + 1}-export-{index + 1}")
            for index, export in enumerate(run.exports)
        ),
        curves=tuple(_curves(run, report, key)),
        sparsity=_sparsity(run, f"{key}-sparsity"),
        pattern=_pattern(run, key),
        strength=_strength(run, f"{key}-strength"),
        competition=tuple(_competition(run, key)),
    )


def _export_page(report: Report, run: RunView, export: ExportView, anchor: str) -> ExportPage:
    found = export.verification
    told = "; ".join(
        f"{name}, median {fmt.milliseconds(one.median_ms)}, 99th percentile {fmt.milliseconds(one.p99_ms)}"
        for name, one in found.latency.stats.items()
    )
    return ExportPage(
        view=export,
        anchor=anchor,
        accuracy=accuracy_table(report, run, export),
        latency=Drawing(
            Markup(figures.latency_distributions(found.latency, anchor)),
            f"Histograms of latency: {told}",
            f"Latency on {export.target}; the line is the median",
        ),
        layer_times=bars.times(found.measured, export.target),
        errors=export_figures.error_pictures(found, Path(run.path) / "export" / export.target),
    )


def _curves(run: RunView, report: Report, key: str) -> list[Drawing]:
    """The primary metric of each task over epochs, beside the baseline's."""
    shown = [run] if report.baseline_run in (None, run) else [run, report.baseline_run]
    curves = {one.name: one.epochs for one in shown if one is not None}
    best = {one.name: one.best_epoch for one in shown if one is not None}
    drawings = []
    for index, task in enumerate(report.tasks):
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
                Markup(figures.learning_curves(curves, task, task.primary, f"{key}-curve{index}", best)),
                f"{fmt.metric_name(task.primary)} of {task.name} over {len(values)} epochs: "
                f"{fmt.metric(values[0], info)} at first, {fmt.metric(values[-1], info)} at last",
                f"{task.name}: {fmt.metric_name(task.primary)} while training; the ring is the best epoch",
            )
        )
    return drawings


def _competition(run: RunView, key: str) -> list[Drawing]:
    """Cosines between task gradients over epochs and by layer, and the spread of the tasks' diagonals."""
    last = next((one.competition for one in reversed(run.epochs) if one.competition is not None), None)
    if last is None:
        return []
    means = "; ".join(f"{pair.replace('|', ' and ')} {last.mean_cosine(pair):+.2f}" for pair in last.pairs)
    layers = len(last.cosines or last.spread)
    drawn = [
        (
            figures.cosine_curves(run.epochs, f"{key}-cosines"),
            f"Mean cosine between task gradients over epochs; at the last: {means}",
            "Do the tasks pull the shared layers the same way? 1: they do, −1: against each other",
        ),
        (
            figures.cosines_by_layer(last, f"{key}-cosine-layers"),
            f"Cosine between task gradients in each of {layers} shared layers; the means are {means}",
            "The same in each layer, at the last epoch",
        ),
        (
            figures.spread_by_layer(last, f"{key}-spread"),
            f"Standard deviation of the diagonals' entries in each of {layers} layers",
            "How far the tasks' diagonals have moved apart from 1, at the last epoch",
        ),
    ]
    return [Drawing(Markup(svg), alt, caption) for svg, alt, caption in drawn if svg is not None]


def _pattern(run: RunView, key: str) -> Drawing | None:
    """Which layers lose channels over epochs."""
    svg = sparsity_figures.zero_pattern(run.epochs, f"{key}-pattern")
    last = next((one.sparsity for one in reversed(run.epochs) if one.sparsity is not None), None)
    if svg is None or last is None:
        return None
    most = max(last.layers, key=lambda name: last.layers[name], default=None)
    told = "" if most is None else f": at the last epoch most in {most}, {100 * last.layers[most]:.0f} %"
    return Drawing(
        Markup(svg),
        f"Share of zero channel groups of {len(last.layers)} layers over epochs{told}",
        "Which layers lose channels, and when: a full bar is a whole layer",
    )


def _strength(run: RunView, key: str) -> Drawing | None:
    svg = sparsity_figures.strength_path(run.epochs, key)
    if svg is None:
        return None
    return Drawing(Markup(svg), "Strength λ of the penalty over epochs", "λ, the strength of the penalty")


def _sparsity(run: RunView, key: str) -> Drawing | None:
    svg = figures.sparsity_curve({run.name: run.epochs}, key)
    if svg is None:
        return None
    last = next(epoch.sparsity for epoch in reversed(run.epochs) if epoch.sparsity is not None)
    share = last.groups_zero
    return Drawing(
        Markup(svg),
        "Share of channel groups at zero over epochs"
        + ("" if share is None else f"; {100 * share:.0f} % at the last epoch"),
        "Channels that training has brought to zero",
    )
