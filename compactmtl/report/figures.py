"""The report's figures as deterministic inline SVG that takes its ink from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from compactmtl.report import format as fmt
from compactmtl.report.model import TaskView
from compactmtl.report.read import Competition, Epoch
from compactmtl.verify.result import LatencyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ink that the SVG writer prints literally and `svg` turns into the page's own text color.
INK = "#010203"
# Okabe and Ito's palette: told apart with any color vision, readable on light and dark paper.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_FADED = "#8a94a3"
WIDTH = 4.8  # inches; a phone shows it at nearly its natural size
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def latency_distributions(latency: LatencyResult, key: str, labels: Mapping[str, str] | None = None) -> str:
    """Every measured latency of each model: a histogram on shared bins, with the median marked.

    The axis ends at the 99th percentile's neighborhood; what lies beyond is counted in the label, not dropped.
    """
    from matplotlib.figure import Figure

    with style(key):
        stats = list(latency.stats.values())
        figure = Figure(figsize=(WIDTH, 0.8 + 1.0 * len(stats)), layout="constrained")
        grid = np.atleast_1d(figure.subplots(len(stats), sharex=True))
        right = 1.05 * max(min(max(one.samples_ms), max(one.p99_ms, 1.5 * one.median_ms)) for one in stats)
        left = (
            min(0.97 * min(one.min_ms for one in stats), right * 0.5)
            if len(stats) > 1
            else 0.95 * stats[0].min_ms
        )
        bins = np.linspace(left, right, 61)
        for axes, one, color in zip(grid, stats, COLORS, strict=False):
            samples = np.asarray(one.samples_ms)
            beyond = int((samples > right).sum())
            axes.hist(samples[samples <= right], bins=bins, color=color, alpha=0.8)
            axes.axvline(one.median_ms, color=INK, linewidth=1)
            name = (labels or {}).get(one.name, one.name)
            title = f"{name}: median {fmt.milliseconds(one.median_ms)}"
            axes.set_title(
                title + (f", {beyond} beyond the axis" if beyond else ""), loc="left", fontsize=9.5
            )
            axes.set_ylabel("runs")
        grid[-1].set_xlabel("latency, ms")
        return svg(figure, key)


def learning_curves(
    curves: Mapping[str, Sequence[Epoch]],
    task: TaskView,
    metric: str,
    key: str,
    best: Mapping[str, int | None],
) -> str:
    """One metric of one task over epochs, a line a run, the best epoch marked."""
    from matplotlib.figure import Figure

    with style(key):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.add_subplot()
        info = task.metrics[metric]
        factor = 100 if info.share else 1
        for color, (name, epochs) in zip(cycle(len(curves)), curves.items(), strict=True):
            points = [
                (epoch.epoch, factor * epoch.val[task.name][metric])
                for epoch in epochs
                if metric in epoch.val.get(task.name, {})
            ]
            if not points:
                continue
            axes.plot(
                *zip(*points, strict=True), color=color, label=name, linewidth=1.6, marker=".", markersize=4
            )
            at = [point for point in points if point[0] == best.get(name)]
            if at:
                axes.plot(*at[0], marker="o", markersize=7, markerfacecolor="none", color=color)
        unit = "%" if info.share else info.unit
        axes.set_ylabel(fmt.metric_name(metric) + (f" ({unit})" if unit else ""))
        axes.set_xlabel("epoch")
        _whole_ticks(axes)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", ncols=min(3, len(curves)))
        return svg(figure, key)


def sparsity_curve(curves: Mapping[str, Sequence[Epoch]], key: str) -> str | None:
    """Share of channel groups at zero, and of MACs removable, over epochs; none where no run is sparse."""
    from matplotlib.figure import Figure

    series = []
    for name, epochs in curves.items():
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
                series.append((f"{name}: {label}" if len(curves) > 1 else label, points))
    if not series:
        return None
    with style(key):
        figure = Figure(figsize=(WIDTH, 2.3 + 0.2 * len(series)), layout="constrained")
        axes = figure.add_subplot()
        for color, (label, points) in zip(cycle(len(series)), series, strict=True):
            axes.plot(
                *zip(*points, strict=True), color=color, label=label, linewidth=1.6, marker=".", markersize=4
            )
        axes.set_ylim(0, 100)
        axes.set_ylabel("share (%)")
        axes.set_xlabel("epoch")
        _whole_ticks(axes)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=1)
        return svg(figure, key)


def cosine_curves(epochs: Sequence[Epoch], key: str) -> str | None:
    """The mean over layers of the cosine between task gradients, a line a pair; none where none was measured."""
    points: dict[str, list[tuple[int, float]]] = {}
    for epoch in epochs:
        if epoch.competition is not None:
            for pair in epoch.competition.pairs:
                points.setdefault(pair, []).append((epoch.epoch, epoch.competition.mean_cosine(pair)))
    return _lines(points, key, ("epoch", "mean cosine"), base=0.0) if points else None


def cosines_by_layer(found: Competition, key: str) -> str | None:
    """The cosine between task gradients in each layer, input to output, a line a pair."""
    points = {
        pair: [(index, values[pair]) for index, values in enumerate(found.cosines.values(), 1)]
        for pair in found.pairs
    }
    return _lines(points, key, ("layer, from the input", "cosine"), base=0.0) if points else None


def spread_by_layer(found: Competition, key: str) -> str | None:
    """The standard deviation of each task's diagonals in each layer, input to output, a line a task."""
    points: dict[str, list[tuple[int, float]]] = {}
    for index, values in enumerate(found.spread.values(), 1):
        for name, value in values.items():
            points.setdefault(name, []).append((index, value))
    return _lines(points, key, ("layer, from the input", "spread of M"), base=0.0) if points else None


def _lines(
    series: Mapping[str, Sequence[tuple[int, float]]], key: str, labels: tuple[str, str], base: float
) -> str:
    """Lines over whole numbers with a rule at `base`."""
    from matplotlib.figure import Figure

    with style(key):
        figure = Figure(figsize=(WIDTH, 2.3 + 0.2 * (len(series) // 3)), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(base, color=INK, alpha=0.4, linewidth=0.6)
        for color, (name, points) in zip(cycle(len(series)), series.items(), strict=True):
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                label=name.replace("|", " and "),
                linewidth=1.4,
                marker=".",
                markersize=4,
            )
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _whole_ticks(axes)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, key)


def cycle(count: int) -> list[str]:
    """As many colors as asked for, from the palette over and over."""
    return [COLORS[number % len(COLORS)] for number in range(count)]


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def shortened(name: str, longest: int = 30) -> str:
    """The end of a long dotted name, which tells layers apart."""
    return name if len(name) <= longest else "…" + name[-(longest - 1) :]


def style(key: str) -> AbstractContextManager[None]:
    """The figures' look; `key` makes their ids the same each time."""
    from matplotlib import rc_context

    return rc_context({**_STYLE, "svg.hashsalt": key})


_IDENTIFIER = re.compile(r'(?<=\sid=")([^"]+)(?=")|(?<=url\(#)([^)]+)(?=\))|(?<=href="#)([^"]+)(?=")')


def svg(figure: Figure, key: str) -> str:
    """The figure as an <svg> element: no date, ids made unique by `key`, scalable, ink from the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = _IDENTIFIER.sub(lambda match: f"{key}-{match.group()}", text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # the writer's style and fonts are the page's business
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    # width stays as the natural size, the height follows the viewBox
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor")
