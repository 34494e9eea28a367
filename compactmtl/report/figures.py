"""The report's figures of training and latency. Each is HTML for a box of any width; ids and colors are the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from compactmtl.report import format as fmt
from compactmtl.report.charts import COLORS, Axis, Line, Mark, Points, axis, legend, log_axis, plot, staircase
from compactmtl.report.deployed import Plane
from compactmtl.report.model import TaskView
from compactmtl.report.read import Competition, Epoch
from compactmtl.verify.result import LatencyResult

BINS = 60


def latency_distributions(latency: LatencyResult) -> Markup:
    """Every measured latency of each model: a histogram on shared bins, with the median marked.

    The axis ends at the 99th percentile's neighborhood; what lies beyond is counted in the label, not dropped.
    """
    stats = list(latency.stats.values())
    right = 1.05 * max(min(max(one.samples_ms), max(one.p99_ms, 1.5 * one.median_ms)) for one in stats)
    left = 0.95 * min(one.min_ms for one in stats)
    x = axis([left, right], "")
    edges = np.linspace(left, right, BINS + 1)
    parts = []
    for number, one in enumerate(stats):
        samples = np.asarray(one.samples_ms)
        counts, _ = np.histogram(samples[samples <= right], edges)
        most = max(1, int(counts.max(initial=0)))
        beyond = int((samples > right).sum())
        title = f"{one.name}: median {fmt.milliseconds(one.median_ms)}"
        title += f", {beyond} beyond the axis" if beyond else ""
        last = number == len(stats) - 1
        shown = Axis(x.low, x.high, x.ticks if last else (), "latency, ms" if last else "")
        height = Axis(0, most, (0, most), title)
        areas = [(staircase([count / most for count in counts]), number)]
        parts.append(plot(shown, height, areas=areas, rule=one.median_ms, height=64))
    return Markup("").join(parts)


def plane(shown: Plane) -> Markup:
    """Δm over latency, a line and dots a series."""
    lines, marks = [], []
    for number, (name, curve) in enumerate(shown.curves.items()):
        lines.append(Line(name, [(one.x, one.y) for one in curve], number))
        marks += [Mark(one.x, one.y, number, title=one.words) for one in curve]
    return legend([(name, number) for number, name in enumerate(shown.curves)]) + plot(
        shown.x, shown.y, lines=lines, marks=marks, base=0.0, height=300
    )


def learning_curves(
    curves: Mapping[str, Sequence[Epoch]], task: TaskView, metric: str, best: Mapping[str, int | None]
) -> Markup:
    """One metric of one task over epochs, a line a run, the best epoch ringed."""
    info = task.metrics[metric]
    factor = 100 if info.share else 1
    unit = "%" if info.share else info.unit
    series: dict[str, Points] = {
        name: [
            (epoch.epoch, factor * epoch.val[task.name][metric])
            for epoch in epochs
            if metric in epoch.val.get(task.name, {})
        ]
        for name, epochs in curves.items()
    }
    rings = {
        name: [point for point in points if point[0] == best.get(name)] for name, points in series.items()
    }
    return _lines(series, "epoch", fmt.metric_name(metric) + (f" ({unit})" if unit else ""), rings=rings)


def sparsity_curve(epochs: Sequence[Epoch]) -> Markup | None:
    """Share of channel groups at zero, and of MACs and parameters removable, over epochs; none for a dense run."""
    series: dict[str, Points] = {}
    for field, label in (
        ("groups_zero", "channel groups at zero"),
        ("macs_removable", "MACs removable"),
        ("parameters_removable", "parameters removable"),
    ):
        points = [
            (epoch.epoch, 100 * value)
            for epoch in epochs
            if epoch.sparsity is not None and (value := getattr(epoch.sparsity, field)) is not None
        ]
        if points:
            series[label] = points
    return _lines(series, "epoch", "share (%)", base=0.0, also=(0.0, 100.0)) if series else None


def strength_path(epochs: Sequence[Epoch]) -> Markup | None:
    """λ after each epoch; none where no λ was ever above 0."""
    points = [
        (one.epoch, one.sparsity.strength)
        for one in epochs
        if one.sparsity is not None and one.sparsity.strength is not None
    ]
    if not any(value > 0 for _, value in points):
        return None
    x = axis([one for one, _ in points], "epoch", whole=True)
    y = log_axis([value for _, value in points], "λ; at the foot 0")
    marks = [Mark(one, value, 1, title=f"epoch {one}: {value:.3g}") for one, value in points]
    return plot(x, y, lines=[Line("λ", points, 1)], marks=marks)


def cosine_curves(epochs: Sequence[Epoch]) -> Markup | None:
    """The mean over layers of the cosine between task gradients, a line a pair; none where none was measured."""
    points: dict[str, list[tuple[float, float]]] = {}
    for epoch in epochs:
        if epoch.competition is not None:
            for pair in epoch.competition.pairs:
                points.setdefault(pair, []).append((epoch.epoch, epoch.competition.mean_cosine(pair)))
    return _lines(_named(points), "epoch", "mean cosine", base=0.0) if points else None


def cosines_by_layer(competition: Competition) -> Markup | None:
    """The cosine between task gradients in each layer, input to output, a line a pair."""
    points = {
        pair: [(index, values[pair]) for index, values in enumerate(competition.cosines.values(), 1)]
        for pair in competition.pairs
    }
    return _lines(_named(points), "layer, from the input", "cosine", base=0.0) if points else None


def spread_by_layer(competition: Competition) -> Markup | None:
    """The standard deviation of each task's diagonals in each layer, input to output, a line a task."""
    points: dict[str, list[tuple[float, float]]] = {}
    for index, values in enumerate(competition.spread.values(), 1):
        for name, value in values.items():
            points.setdefault(name, []).append((index, value))
    return _lines(points, "layer, from the input", "spread of M", base=0.0) if points else None


def _named(points: Mapping[str, Points]) -> dict[str, Points]:
    return {pair.replace("|", " and "): values for pair, values in points.items()}


def _lines(
    series: Mapping[str, Points],
    x_title: str,
    y_title: str,
    *,
    rings: Mapping[str, Points] | None = None,
    base: float | None = None,
    also: Sequence[float] = (),
) -> Markup:
    """Lines over whole numbers with a dot a point; values `also` are on the axis too. What is no number is left out."""
    finite = {
        name: [(one, value) for one, value in points if math.isfinite(value)]
        for name, points in series.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return Markup("")
    x = axis([one for points in finite.values() for one, _ in points], x_title, whole=True)
    values = [value for points in finite.values() for _, value in points]
    y = axis([*values, *also, *([] if base is None else [base])], y_title, margin=0.0 if also else 0.06)
    lines, marks = [], []
    for number, (name, points) in enumerate(finite.items()):
        lines.append(Line(name, points, number % COLORS))
        marks += [Mark(one, value, number, title=f"{name}, {one:g}: {value:.4g}") for one, value in points]
        marks += [
            Mark(one, value, number, "ring", f"{name}: best") for one, value in (rings or {}).get(name, ())
        ]
    return legend([(name, number) for number, name in enumerate(finite)]) + plot(
        x, y, lines=lines, marks=marks, base=base
    )
