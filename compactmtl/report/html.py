"""Render the report's data model as one offline HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

import compactmtl
from compactmtl.artifacts.layout import EXPORT
from compactmtl.report import delta_formats, deployment, export_figures, figures, sparsity_figures, table
from compactmtl.report import format as fmt
from compactmtl.report.model import ExportView, Report, RunView, Stage, TaskView
from compactmtl.report.paired import paired_cells
from compactmtl.report.pictures import data_uri
from compactmtl.report.samples import SampleView, TaskSample, View
from compactmtl.verify.result import LatencyResult
from compactmtl.verify.speed import (
    artifact_speed,
    band_in_words,
    slowdowns,
    speed_of,
    subject_latency,
    told,
    variation,
)


@dataclass(frozen=True)
class Headline:
    """One large number at the top of the page."""

    value: str
    label: str
    tone: table.Tone = ""


@dataclass(frozen=True)
class Drawing:
    """An inline figure: its SVG, what it shows in words for those who can't see it, and a caption."""

    svg: Markup
    alt: str
    caption: str


@dataclass(frozen=True)
class RunPage:
    """Drawings of one run."""

    view: RunView
    layers: Drawing | None
    latency: tuple[Drawing, ...]
    layer_times: tuple[Drawing | None, ...]
    errors: tuple[tuple[export_figures.ErrorPicture, ...], ...]
    curves: tuple[Drawing, ...]
    sparsity: Drawing | None
    pattern: tuple[Drawing, ...]
    competition: tuple[Drawing, ...]


def render(report: Report, samples: Sequence[SampleView]) -> str:
    """The whole page; nothing in it is fetched from elsewhere."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=fmt.count,
        metric_name=fmt.metric_name,
        milliseconds=fmt.milliseconds,
        duration=fmt.duration,
        percent=fmt.signed_percent,
        ratio=fmt.ratio,
        small=fmt.small,
        data_uri=data_uri,
        prediction=_prediction,
        breakable=_breakable,
    )
    template = environment.from_string(
        files("compactmtl.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        title=_title(report),
        version=compactmtl.__version__,
        # Figures of one run; of several the tables speak, for any one of them would mislead.
        headlines=_headlines(report.subjects[0], report) if len(report.subjects) == 1 else [],
        gates=deployment.gates_in_words(report),
        table=table.comparison(report),
        delta=delta_formats.grid(report) if delta_formats.shows_more(report) else None,
        paired=paired_cells(report),
        deployments=deployment.deployments(report),
        pareto=_pareto(report),
        samples=samples,
        labels=list(
            dict.fromkeys(label for one in samples for task in one.tasks for label in task.predictions)
        ),
        pages=[_page(run, number, report) for number, run in enumerate(_subjects_first(report))],
        stage_cell=_stage_cell,
        arrow=table.arrow,
        speed=table.speed_cell,
        band=_band,
        status=deployment.status,
        variation=variation,
        definition=table.footnote(report),
        NOT_RUN=fmt.NOT_RUN,
    )


def _pareto(report: Report) -> Drawing | None:
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


def _breakable(name: str) -> Markup:
    """A dotted name that may break after its dots and underscores."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))


def _prediction(task: TaskSample, label: str) -> View | None:
    return task.predictions.get(label)


def _title(report: Report) -> str:
    names = ", ".join(run.name for run in report.subjects)
    against = "single-task networks" if report.single_task_runs else report.baseline
    return f"{names} against {against}" if against else names


def _headlines(run: RunView, report: Report) -> list[Headline]:
    """MACs, parameters, speed and Δm of the run; what was not measured is said to be so."""
    reference = report.baseline_run.trained.size if report.baseline_run else run.trained.size
    smallest = run.smallest
    headlines = []
    export, exports = run.shown_export, run.current_exports
    if exports and not any(one.holds for one in exports):
        told = "every export" if len(exports) > 1 else f"the export to {exports[0].target}"
        headlines.append(Headline("failed", f"gates of {told}", "bad"))
    for quantity, label in (("macs", "MACs"), ("parameters", "parameters")):
        if reference is None or smallest is None:
            headlines.append(Headline(fmt.NOT_RUN, label, "missing"))
            continue
        change = getattr(smallest, quantity) / getattr(reference, quantity) - 1
        headlines.append(Headline(fmt.signed_percent(change), label, "good" if change < 0 else ""))
    if export is not None:
        headlines += _speeds(export)
    elif exports:
        headlines.append(Headline("no figure", "latency: no export held its gates", "missing"))
    else:
        headlines.append(Headline(fmt.NOT_RUN, "latency", "missing"))
    if report.delta_reference:
        delta = run.final.delta_m
        headlines.append(
            Headline(fmt.NOT_RUN, "Δm", "missing")
            if delta is None
            else Headline(fmt.signed_percent(delta), "Δm", "good" if delta > 0 else "")
        )
    return headlines


def _speeds(export: ExportView) -> list[Headline]:
    """How much faster the artifact is than the dense model, and where its precision made it slower."""
    latency = export.verification.latency
    _, stats = subject_latency(latency)
    speed = artifact_speed(latency)
    if speed is None:
        return [Headline(fmt.milliseconds(stats.median_ms), f"latency, median ({export.target})")]
    found = [speed, *(one for one in slowdowns(latency) if one != speed)]
    headlines = []
    for one in found:
        value, _, words = told(one).partition(" ")
        if one.verdict == "same":
            value, words = fmt.ratio(one.ratio), told(one)
        tone = table.speed_cell(latency, one.against).tone
        headlines.append(Headline(value, f"{words} (latency, {export.target})", tone))
    return headlines


def _band(latency: LatencyResult, name: str, against: str) -> str:
    return band_in_words(speed_of(latency, name, against))


def _stage_cell(stage: Stage, task: TaskView, metric: str) -> table.Cell:
    """One metric of one form of a run's model."""
    if stage.metrics is None:
        return table.MISSING
    value = stage.metrics.get(task.name, {}).get(metric)
    return table.NOTHING if value is None else table.Cell(fmt.metric(value, task.metrics[metric]))


def _subjects_first(report: Report) -> list[RunView]:
    baseline = [report.baseline_run] if report.baseline_run else []
    singles = [run for run in report.runs if run.name in report.single_task_runs]
    return [*report.subjects, *baseline, *singles]


def _page(run: RunView, number: int, report: Report) -> RunPage:
    key = f"run{number}"
    return RunPage(
        view=run,
        layers=_layers(run, f"{key}-layers"),
        latency=tuple(
            Drawing(
                Markup(figures.latency_distributions(export.verification.latency, f"{key}-latency{index}")),
                "Histograms of latency: "
                + "; ".join(
                    f"{name}, median {fmt.milliseconds(one.median_ms)}, 99th percentile {fmt.milliseconds(one.p99_ms)}"
                    for name, one in export.verification.latency.stats.items()
                ),
                f"Latency on {export.target}; the line is the median",
            )
            for index, export in enumerate(run.exports)
        ),
        layer_times=tuple(
            _layer_times(export, f"{key}-times{index}") for index, export in enumerate(run.exports)
        ),
        errors=tuple(
            export_figures.error_pictures(export.verification, Path(run.path) / EXPORT / export.target)
            for export in run.exports
        ),
        curves=tuple(_curves(run, report, key)),
        sparsity=_sparsity(run, f"{key}-sparsity"),
        pattern=tuple(_pattern(run, key)),
        competition=tuple(_competition(run, key)),
    )


def _layers(run: RunView, key: str) -> Drawing | None:
    if run.surgery is None or not run.surgery.layers:
        return None
    layers = run.surgery.layers
    before, after = sum(layer.before[0] for layer in layers), sum(layer.after[0] for layer in layers)
    return Drawing(
        Markup(figures.layer_channels(layers, key)),
        f"Bars of output channels of {len(layers)} layers: {before} before surgery, {after} after. "
        "The table below holds every number.",
        "Output channels of each layer before and after surgery",
    )


def _layer_times(export: ExportView, key: str) -> Drawing | None:
    models, rows = export_figures.layer_times(export.verification.measured)
    if not rows:
        return None
    sums = {model: sum(row.milliseconds[index] for row in rows) for index, model in enumerate(models)}
    told = ", ".join(f"{model} {fmt.milliseconds(total)}" for model, total in sums.items())
    slowest = max(rows, key=lambda row: max(row.milliseconds)).name
    return Drawing(
        Markup(export_figures.layer_bars(models, rows, key)),
        f"Bars of milliseconds of {len(rows)} layers on {export.target}; in all {told}; the slowest is {slowest}",
        f"Milliseconds of each layer as {export.target} runs it, by its own profile; in all {told}",
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


def _pattern(run: RunView, key: str) -> list[Drawing]:
    """Which layers lose channels over epochs, and λ."""
    last = next((one.sparsity for one in reversed(run.epochs) if one.sparsity is not None), None)
    if last is None:
        return []
    most = max(last.layers, key=lambda name: last.layers[name], default=None)
    alt = "" if most is None else f": at the last epoch most in {most}, {100 * last.layers[most]:.0f} %"
    drawn = [
        (
            sparsity_figures.zero_pattern(run.epochs, f"{key}-pattern"),
            f"Share of zero channel groups of {len(last.layers)} layers over epochs{alt}",
            "Which layers lose channels, and when: a full bar is a whole layer",
        ),
        (
            sparsity_figures.strength_path(run.epochs, f"{key}-strength"),
            "Strength λ of the penalty over epochs",
            "λ of the penalty",
        ),
    ]
    return [Drawing(Markup(svg), alt, caption) for svg, alt, caption in drawn if svg is not None]


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
