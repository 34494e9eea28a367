"""Bars of many layers as plain HTML: as wide as the page, the largest first, the small ones folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compactmtl.report import format as fmt
from compactmtl.report.charts import staircase
from compactmtl.report.export_figures import LayerTimes, layer_times
from compactmtl.report.read import Epoch, LayerChange
from compactmtl.verify.result import Measured

SHOWN = 12  # rows before the fold


@dataclass(frozen=True)
class Bar:
    """A length as a share of the chart's longest, and its number in words."""

    share: float
    text: str


@dataclass(frozen=True)
class BarRow:
    """One layer: a bar a series, or the path of an area over the epochs with its last value in words; or `areas`, paths with
    their colors, each over those before, with words on all of them.
    """

    name: str
    bars: tuple[Bar, ...] = ()
    path: str = ""
    text: str = ""
    areas: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class BarChart:
    """Rows from the longest to the shortest. `series` names the bars of each row, in their order; in `colors` of the page's
    series, or in shades of which the first stands back.
    """

    series: tuple[str, ...]
    rows: tuple[BarRow, ...]
    caption: str
    colors: bool = False

    @property
    def shown(self) -> tuple[BarRow, ...]:
        """The rows that are always in sight. A fold of two or three would hide more than it saves."""
        return self.rows if len(self.rows) <= SHOWN + 3 else self.rows[:SHOWN]

    @property
    def folded(self) -> tuple[BarRow, ...]:
        """The others."""
        return self.rows[len(self.shown) :]


def layer_costs(layers: Sequence[LayerChange]) -> BarChart | None:
    """MACs of each layer before and after surgery, with its output channels; none without a layer that has any."""
    rows = sorted((layer for layer in layers if layer.macs.before), key=lambda layer: -layer.macs.before)
    if not rows:
        return None
    longest = rows[0].macs.before
    before, after = (sum(getattr(layer.macs, when) for layer in rows) for when in ("before", "after"))
    return BarChart(
        ("before surgery", "after"),
        tuple(
            BarRow(
                layer.name,
                (
                    Bar(
                        layer.macs.before / longest,
                        f"{fmt.count(layer.macs.before)}, {layer.before[0]} channels",
                    ),
                    Bar(
                        layer.macs.after / longest,
                        f"{fmt.count(layer.macs.after)}, {layer.after[0]} channels",
                    ),
                ),
            )
            for layer in rows
        ),
        f"MACs and output channels of each of {len(rows)} layers before and after surgery, the most expensive first; "
        f"together {fmt.count(before)} before and {fmt.count(after)} after",
    )


def times(measured: Mapping[str, Measured], target: str) -> BarChart | None:
    """Milliseconds of each layer by the runtime's own profile, a bar a model; none where no layer was timed."""
    models, layers = layer_times(measured)
    if not layers:
        return None
    rows: list[LayerTimes] = sorted(layers, key=lambda row: -max(row.milliseconds))
    longest = max(max(rows[0].milliseconds), 1e-12)
    sums = ", ".join(
        f"{model} {fmt.milliseconds(sum(row.milliseconds[index] for row in rows))}"
        for index, model in enumerate(models)
    )
    return BarChart(
        tuple(models),
        tuple(
            BarRow(
                row.name,
                tuple(
                    Bar(value / longest, fmt.milliseconds(value) if value else "—")
                    for value in row.milliseconds
                ),
            )
            for row in rows
        ),
        f"Milliseconds of each layer on {target} by the runtime's own profile, the slowest first; in all {sums}",
    )


def zero_pattern(epochs: Sequence[Epoch]) -> BarChart | None:
    """The share of each layer's groups that is zero after each epoch; none where nothing is known.

    A row a layer, the emptiest first.
    """
    known = [
        epoch.sparsity.layers for epoch in epochs if epoch.sparsity is not None and epoch.sparsity.layers
    ]
    if not known:
        return None
    last = known[-1]
    rows = []
    for name in sorted(last, key=lambda name: -last[name]):
        shares = [layers.get(name, 0.0) for layers in known]
        rows.append(BarRow(name, path=staircase(shares), text=f"{100 * last[name]:.0f} %"))
    caption = (
        f"Share of each layer's channels at zero over {len(known)} epochs, the emptiest layer first; a full height is a "
        "whole layer"
    )
    return BarChart((), tuple(rows), caption)
