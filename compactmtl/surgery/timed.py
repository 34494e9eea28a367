"""What removals save on a target, by a latency table: those that would make the network slower are left undone.

Fewer channels are not always faster. Kernels take channels in blocks, so that 188 may take longer than 192; a norm over the
channel goes on at its full width, which takes a copy of its input; and an index gather moves memory. A table (see `Times`) says
what a layer of some widths takes. What it does not know is reckoned from it: the time of a multiply-accumulate is that of all
its convolutions and linear layers together, and a number that is copied takes as long as some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compactmtl.graph.calls import arguments
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import FullWidth, Product
from compactmtl.graph.inputs import Arguments
from compactmtl.graph.space import Flags, Ids
from compactmtl.graph.work import counts
from compactmtl.surgery.order import Order
from compactmtl.surgery.thin import MACS_PER_CALL, MACS_PER_COPY, MACS_PER_MOVE, Thinned

CLEARLY = 1.05  # how much longer the layers that a removal changes have to take before it is left undone
BLOCKS = (4, 8, 16, 32, 64)  # channels that kernels take at a time: a layer may be left at a multiple
SWEEPS = 4  # over all layers: what one keeps changes what its neighbors gain


class LayerTimes(Protocol):
    """Milliseconds of one layer."""

    def at(self, outputs: int, inputs: int | None) -> float:
        """With so many outputs and inputs, inputs None for a depthwise layer."""
        ...


class Times(Protocol):
    """A latency table, such as `compactmtl.latency.latency_table` makes: milliseconds of each layer by its name."""

    @property
    def target(self) -> str: ...

    @property
    def rest_ms(self) -> float: ...

    @property
    def layers(self) -> Mapping[str, LayerTimes]: ...

    def check(self, widths: Mapping[str, tuple[int, int | None]]) -> None:
        """Raise ConfigError where the table is of another network than one with layers of these full widths."""

    def check_inputs(self, arguments: Arguments) -> None:
        """Raise ConfigError where the table is of another batch or size of images."""


@dataclass(frozen=True)
class Left:
    """A removal that was left undone: of the layer, how many channels; the MACs that it would have saved, the time it would cost.

    `channels` are the layer's own, of the coordinates that go with them the first to be written.
    """

    name: str
    channels: int
    macs: int
    milliseconds: float


@dataclass(frozen=True)
class Timing:
    """Predicted milliseconds of the network before surgery, with all removed that is dead, and as it is; what was left for that."""

    target: str
    before: float
    all_removed: float
    after: float
    left: tuple[Left, ...] = ()


class Prediction:
    """Milliseconds of a traced network with only some classes left, by a table."""

    def __init__(self, graph: ChannelGraph, times: Times) -> None:
        self._graph, self.times = graph, times
        # A layer that is called twice is in the table once, as all its calls.
        products = {product.name: product for product in graph.products}
        self._names = list(products)
        self._each = [product.inputs is None for product in products.values()]
        own = list(products.values())
        self._outputs = counts([product.outputs for product in own], graph.labels, graph.classes)
        self._inputs = counts([product.inputs for product in own], graph.labels, graph.classes)
        self._known: dict[tuple[str, int, int], float] = {}
        everything = np.ones(graph.classes, dtype=bool)
        macs = dict.fromkeys(self._names, 0.0)
        for product, value in zip(graph.products, graph.layer_macs(everything), strict=True):
            macs[product.name] += value
        full = self.widths(everything)
        self._macs_each = {
            name: macs[name] / max(int(outputs) * (1 if each else int(inputs)), 1)
            for name, each, (outputs, inputs) in zip(self._names, self._each, full, strict=True)
        }
        self.per_mac = 0.0
        timed = [
            (name, *width)
            for name, each, width in zip(self._names, self._each, full.tolist(), strict=True)
            if name in times.layers and not each
        ]
        if work := sum(macs[name] for name, *_ in timed):
            self.per_mac = sum(times.layers[name].at(*width) for name, *width in timed) / work

    def widths(self, alive: Flags) -> NDArray[np.int64]:
        """Outputs and inputs of every layer, (layers, 2)."""
        weights = alive.astype(np.float64)
        return np.stack([self._outputs @ weights, self._inputs @ weights], 1).astype(np.int64)

    def parts(self, alive: Flags) -> NDArray[np.float64]:
        """Milliseconds of every layer, and then of every module that may run at full width."""
        layers = [
            self._layer(name, each, *width)
            for name, each, width in zip(self._names, self._each, self.widths(alive).tolist(), strict=True)
        ]
        per_number = MACS_PER_COPY * self.per_mac
        copies = [per_number * copied(self._graph, module, alive) for module in self._graph.full_width]
        return np.array([*layers, *copies])

    def changed(self, alive: Flags, other: Flags) -> Flags:
        """Which of the `parts` are of another width with the one or the other classes left."""
        layers = (self.widths(alive) != self.widths(other)).any(1)
        modules = [
            int(alive[labels].sum()) != int(other[labels].sum())
            for labels in (self._graph.labels[module.ids] for module in self._graph.full_width)
        ]
        return np.array([*layers, *modules], dtype=bool)

    def total(self, alive: Flags) -> float:
        """Milliseconds of the whole network."""
        return self.times.rest_ms + float(self.parts(alive).sum())

    def layer(self, product: Product, outputs: int, inputs: int) -> float:
        """Milliseconds of one layer at these widths."""
        return self._layer(product.name, product.inputs is None, outputs, inputs)

    def _layer(self, name: str, each: bool, outputs: int, inputs: int) -> float:
        key = (name, outputs, inputs)
        if key not in self._known:
            layer = self.times.layers.get(name)
            if layer is None:  # a part of one that the table knows, such as of an attention that was split
                work = self._macs_each[name] * outputs * (1 if each else inputs)
                self._known[key] = self.per_mac * work
            else:
                self._known[key] = layer.at(outputs, None if each else inputs)
        return self._known[key]


def copied(graph: ChannelGraph, module: FullWidth, alive: Flags) -> float:
    """Numbers that are written so that a module runs at its full width: its channels put back, and dropped again."""
    kept = alive[graph.labels[module.ids]]
    if kept.all() or module.is_cut(kept):
        return 0.0
    positions = float(np.prod(graph.shape(module.source))) / len(kept)
    return positions * (len(kept) + int(kept.sum()))


def choose_left(
    graph: ChannelGraph, alive: Flags, close: Callable[[Flags], Flags], times: Times
) -> tuple[Flags, Timing, Ids]:
    """The classes that stay where only what is clearly not slower goes, (classes,); the timing, and the classes that were left.

    `alive` stay in any case. `close` adds to classes that stay what has to stay with them. A layer's dead channels go together, or
    as many stay as make its count a multiple of a block, or all of them.
    """
    prediction = Prediction(graph, times)
    choice = _Choice(prediction, graph.labels, alive, list(_units(graph, alive)))
    choice.settle()
    before = prediction.total(np.ones_like(alive))
    all_removed = prediction.total(alive)
    nothing = alive, Timing(times.target, before, all_removed, all_removed), np.empty(0, np.int64)
    chosen = choice.alive()
    if (chosen == alive).all():
        return nothing
    stays = close(chosen)
    after = prediction.total(stays)
    if after >= all_removed:
        return nothing
    left = []
    for unit, count in zip(choice.units, choice.kept, strict=True):
        if count:
            without = stays.copy()
            without[unit.classes[:count]] = False
            left.append(
                Left(
                    unit.product.name,
                    int(unit.sizes[:count].sum()),
                    round(graph.macs_of_classes(stays) - graph.macs_of_classes(without)),
                    float(prediction.total(without) - after),
                )
            )
    return (
        stays,
        Timing(times.target, before, all_removed, after, tuple(left)),
        np.flatnonzero(stays & ~alive),
    )


def fast_thinned(
    graph: ChannelGraph, alive: Flags, thinned: Mapping[str, Thinned], order: Order, times: Times
) -> tuple[dict[str, Thinned], tuple[Left, ...]]:
    """Of layers that may take a part of the channels around them, those that are faster so; and the others, with what they
    would have saved."""
    prediction = Prediction(graph, times)
    fast, left = {}, []
    for product in graph.products:
        thin = thinned.get(product.weight or "")
        if thin is None or product.weight is None:
            continue
        assert product.inputs is not None
        around = (
            int(alive[graph.labels[product.outputs]].sum()),
            int(alive[graph.labels[product.inputs]].sum()),
        )
        own = (
            around[0] if thin.outputs is None else int(thin.outputs.sum()),
            around[1] if thin.inputs is None else int(thin.inputs.sum()),
        )
        moved = 0.0
        for flags, ids, shape, taken in (
            (thin.inputs, product.inputs, graph.shape(arguments(product.node)["input"]), own[1]),
            (thin.outputs, product.outputs, graph.shape(product.node), around[0]),
        ):
            if flags is not None:
                labels = graph.labels[ids]
                each = MACS_PER_COPY if order.in_one_piece(labels, alive[labels], flags) else MACS_PER_MOVE
                moved += each * taken * float(np.prod(shape)) / len(ids) + MACS_PER_CALL
        costs = (
            prediction.layer(product, *own) + prediction.per_mac * moved - prediction.layer(product, *around)
        )
        if costs < 0:
            fast[product.weight] = thin
        else:
            macs = product.scale * (around[0] * around[1] - own[0] * own[1])
            gone = around[0] - own[0] + around[1] - own[1]
            left.append(Left(f"{product.name} (what it takes)", gone, round(macs), float(costs)))
    return fast, tuple(left)


@dataclass(frozen=True)
class _Unit:
    """Classes of dead channels that a layer is the first to write, in its order, and how many of its channels each has."""

    product: Product
    classes: Ids
    sizes: Ids


def _units(graph: ChannelGraph, alive: Flags) -> Iterator[_Unit]:
    remaining = ~alive
    for product in graph.products:
        labels = graph.labels[product.outputs]
        dead, first, sizes = np.unique(labels[remaining[labels]], return_index=True, return_counts=True)
        if len(dead):
            order = np.argsort(first)
            yield _Unit(product, dead[order], sizes[order])
            remaining[dead] = False


class _Choice:
    """How many of each unit's classes stay."""

    def __init__(self, prediction: Prediction, labels: Ids, alive: Flags, units: Sequence[_Unit]) -> None:
        self._prediction, self._labels, self._alive, self.units = prediction, labels, alive, units
        self.kept = [0] * len(units)

    def settle(self) -> None:
        """Begin at the block of channels that suits the whole network best, then change one layer after another."""
        starts = [[0] * len(self.units)]
        for block in BLOCKS:
            starts.append([self._up_to(index, block, self._alive) for index in range(len(self.units))])
        self.kept = min(starts, key=lambda kept: self._prediction.total(self.alive(kept)))
        for _ in range(SWEEPS):
            before = list(self.kept)
            for index in range(len(self.units)):
                self._change(index)
            if self.kept == before:
                return

    def alive(self, kept: Sequence[int] | None = None) -> Flags:
        """The classes that stay."""
        result = self._alive.copy()
        for unit, count in zip(self.units, self.kept if kept is None else kept, strict=True):
            result[unit.classes[:count]] = True
        return result

    def _change(self, index: int) -> None:
        """Keep of a unit what is fastest, and nothing unless without it the layers that change take clearly longer."""
        self.kept[index] = 0
        alive = self.alive()
        none = self._prediction.parts(alive)
        best, changed, parts = 0, np.zeros(len(none), dtype=bool), none
        options = {self._up_to(index, block, alive) for block in BLOCKS} | {len(self.units[index].classes)}
        for count in sorted(options - {0}):
            self.kept[index] = count
            other = self.alive()
            found = self._prediction.parts(other)
            if found.sum() < parts.sum():
                best, changed, parts = count, self._prediction.changed(alive, other), found
        clearly = none[changed].sum() > CLEARLY * parts[changed].sum()
        self.kept[index] = best if clearly else 0

    def _up_to(self, index: int, block: int, alive: Flags) -> int:
        """How many classes of a unit stay for its layer's count to reach a multiple of `block`; all where it reaches none.

        `alive` are those that stay beside them.
        """
        unit = self.units[index]
        others = int(alive[self._labels[unit.product.outputs]].sum())
        reached = others + np.concatenate([[0], np.cumsum(unit.sizes)])
        fits = np.flatnonzero(reached % block == 0)
        return int(fits[0]) if len(fits) else len(unit.classes)
