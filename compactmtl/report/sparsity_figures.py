"""Figures of structured sparsity: which layers lose channels and when, and the λ that makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compactmtl.report.figures import COLORS, _whole_ticks, shortened, style, svg
from compactmtl.report.read import Epoch

_WIDTH = 4.8


def zero_pattern(epochs: Sequence[Epoch], key: str) -> str | None:
    """The share of each layer's groups that is zero after each epoch, a row a layer; none where nothing is known."""
    from matplotlib.figure import Figure

    found = [epoch for epoch in epochs if epoch.sparsity is not None and epoch.sparsity.layers]
    if not found:
        return None
    names = list(found[-1].sparsity.layers) if found[-1].sparsity is not None else []
    shares = np.array(
        [[one.sparsity.layers.get(name, 0.0) for one in found if one.sparsity is not None] for name in names]
    )
    with style(key):
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.19 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        for row, values in enumerate(shares):
            for one, share in zip(found, values, strict=True):
                if share > 0:  # a rectangle as high as the share of the row that is gone
                    axes.bar(one.epoch, -0.9 * share, width=0.9, bottom=row + 0.45, color=COLORS[0])
        axes.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(found[0].epoch - 0.6, found[-1].epoch + 0.6)
        for row, share in enumerate(shares[:, -1]):
            axes.annotate(
                f"{100 * share:.0f} %",
                (found[-1].epoch + 0.6, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_xlabel("epoch")
        axes.tick_params(axis="y", length=0)
        _whole_ticks(axes)
        return svg(figure, key)


def strength_path(epochs: Sequence[Epoch], key: str) -> str | None:
    """λ after each epoch; none where no λ was ever above 0."""
    from matplotlib.figure import Figure

    points = [
        (one.epoch, one.sparsity.strength)
        for one in epochs
        if one.sparsity is not None and one.sparsity.strength is not None
    ]
    positive = [value for _, value in points if value > 0]
    if not positive:
        return None
    with style(key):
        figure = Figure(figsize=(_WIDTH, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), color=COLORS[1], linewidth=1.6, marker=".", markersize=4)
        # 0 before the warm-up and after the release has its place too
        axes.set_yscale("symlog", linthresh=min(positive) / 2)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("λ")
        axes.set_xlabel("epoch")
        _whole_ticks(axes)
        return svg(figure, key)
