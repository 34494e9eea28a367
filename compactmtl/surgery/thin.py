"""Layers that read and write fewer channels than the tensors around them keep.

Members of a residual sum often disagree on which channels are dead, so that the sum keeps them all. A layer then takes a
span of the channels, from the first that it needs to the last, and its output is padded to the width of the sum. Channels
are put in an order in which spans are short. What a span does not serve can be picked by index, where that is asked for. Each
moves memory, so that it is done only where the MACs saved are predicted to take longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product as pairs_of

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compactmtl.graph.calls import arguments, operator, owner, stack_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import Product
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.analyse import carriers_of
from compactmtl.surgery.arrange import arrange
from compactmtl.surgery.gather import takes_a_part
from compactmtl.surgery.order import Order, find_runs

# Prices in multiply-accumulates, by tools/bench_gather.py (docs/results/surgery.md): of reading and writing one number by
# index, and in one piece, and of one operator more, however little it does, where it is dearest: in eager torch. All lie
# well above what was measured, for processors differ, and to leave a layer as it is costs little.
MACS_PER_MOVE = 32.0
MACS_PER_COPY = 16.0
MACS_PER_CALL = 100_000.0


@dataclass(frozen=True, eq=False)
class Thinned:
    """The entries that a layer keeps of its inputs and outputs, counted as before surgery; None keeps all alive ones.

    `constants` (outputs,) is what stands where it does not compute any more. `norm` is the path of a batch norm behind it
    that keeps the same entries as its outputs; the constants then stand behind the norm.
    """

    inputs: Flags | None
    outputs: Flags | None
    constants: NDArray[np.float64]
    norm: str = ""


@dataclass(frozen=True, eq=False)
class _Side:
    """What a layer has on one side, (n,): `classes` of its channels, those that stay, those that it needs.

    `moved` are the numbers that are copied where fewer are taken: for each that is taken, or for each that stays.
    """

    classes: Ids
    alive: Flags
    needed: Flags
    places: float
    of_all: bool  # outputs are spread over all that stay
    copies: int = 1

    def price(self, taken: Flags, each: float) -> float:
        moved = float((self.alive if self.of_all else taken).sum()) * self.places * self.copies
        return each * moved + MACS_PER_CALL * self.copies


@dataclass(frozen=True, eq=False)
class _Layer:
    weight: str
    scale: float  # MACs of a pair of an input and an output
    reads: _Side
    writes: _Side
    constants: NDArray[np.float64]
    norm: str

    @property
    def sides(self) -> tuple[tuple[_Side, float], tuple[_Side, float]]:
        """Each side with the MACs of one of its channels."""
        reads, writes = self.scale * self.reads.needed.sum(), self.scale * self.writes.needed.sum()
        return (self.reads, float(writes)), (self.writes, float(reads))


Moved = tuple[Ids, Ids]  # a run of classes, and the places before of what comes first, second, ...


class Thinning:
    """The layers of a graph that may keep less than the `alive` classes, (classes,), and in which order that serves them."""

    def __init__(self, graph: ChannelGraph, model: nn.Module, alive: Flags, align: int, gather: bool) -> None:
        """Channel counts are multiples of `align` where so many stay; with `gather` channels may be picked by index."""
        self._graph, self._alive, self._align, self._gather = graph, alive, align, gather
        self._layers = list(_layers(graph, model, alive))

    def moved(self) -> list[Moved]:
        """The runs whose channels are put in another order."""
        sides = [
            (side, each)
            for layer in self._layers
            for side, each in layer.sides
            if each * float((side.alive & ~side.needed).sum()) > side.price(side.needed, MACS_PER_COPY)
        ]
        runs = find_runs(self._graph, self._alive) if sides else []
        of_class = np.full(self._graph.classes, -1, dtype=np.int64)
        for index, run in enumerate(runs):
            of_class[run] = index
        sets: dict[int, list[tuple[Flags, float]]] = {}
        for side, each in sides:
            classes = side.classes[side.needed]
            index = int(of_class[classes[0]])
            if index >= 0 and (of_class[classes] == index).all():
                sets.setdefault(index, []).append((np.isin(runs[index], classes), each))
        moved = []
        for index, own in sets.items():
            order = arrange(np.stack([flags for flags, _ in own]), np.array([each for _, each in own]))
            if (np.diff(order) < 0).any():
                moved.append((runs[index], order))
        return moved

    def order(self, moved: Sequence[Moved]) -> Order:
        """The order in which the channels of these runs are moved, and no others."""
        order = Order.unchanged(self._graph.classes)
        for run, own in moved:
            order = order.with_run(run, own)
        return order

    def choose(self, order: Order) -> dict[str, Thinned]:
        """By the weight's name, the layers for which less is predicted to be faster in this order."""
        chosen = {layer.weight: self._cheapest(layer, order) for layer in self._layers}
        return {weight: thinned for weight, thinned in chosen.items() if thinned is not None}

    def used(self, moved: Sequence[Moved], thinned: dict[str, Thinned]) -> list[Moved]:
        """Of runs those whose order serves some thinned layer."""
        served = np.zeros(self._graph.classes, dtype=bool)
        for layer in self._layers:
            thin = thinned.get(layer.weight)
            if thin is not None:
                for side, flags in ((layer.reads, thin.inputs), (layer.writes, thin.outputs)):
                    if flags is not None:
                        served[side.classes[side.alive]] = True
        return [(run, order) for run, order in moved if served[run].any()]

    def _cheapest(self, layer: _Layer, order: Order) -> Thinned | None:
        best, least = None, layer.scale * float(layer.reads.alive.sum() * layer.writes.alive.sum())
        for (inputs, reading), (outputs, writing) in pairs_of(
            self._options(layer.reads, order), self._options(layer.writes, order)
        ):
            count = [
                float((side.alive if flags is None else flags).sum())
                for side, flags in ((layer.reads, inputs), (layer.writes, outputs))
            ]
            cost = layer.scale * count[0] * count[1] + reading + writing
            if cost < least:
                best, least = Thinned(inputs, outputs, layer.constants, layer.norm), cost
        return best

    def _options(self, side: _Side, order: Order) -> list[tuple[Flags | None, float]]:
        """What may be taken of a side, and the price: all, a span, picked entries."""
        options: list[tuple[Flags | None, float]] = [(None, 0.0)]
        span = _span(side, order, self._align)
        if span.sum() < side.alive.sum():
            options.append((span, side.price(span, MACS_PER_COPY)))
        if self._gather:
            picked = _aligned(side.needed, side.alive, self._align)
            if picked.sum() < span.sum():
                options.append((picked, side.price(picked, MACS_PER_MOVE)))
        return options


def _span(side: _Side, order: Order, align: int) -> Flags:
    """From the first needed entry that stays to the last, with more behind or in front of them to a multiple of `align`."""
    kept = order.kept(side.classes, side.alive)
    needed = np.flatnonzero(side.needed[kept])
    first, end = (int(needed[0]), int(needed[-1]) + 1) if len(needed) else (0, 1)
    width = min(-(-(end - first) // align) * align, len(kept))
    end = min(first + width, len(kept))
    span = np.zeros_like(side.needed)
    span[kept[end - width : end]] = True
    return span


def _layers(graph: ChannelGraph, model: nn.Module, alive: Flags) -> Iterator[_Layer]:
    """Plain layers that are called once, as modules: their inputs and outputs can be caught."""
    uses = Counter(name for p in graph.products for name in (p.weight, p.bias) if name is not None)
    scaled = {attention.maker for attention in graph.scaled.values()}
    for product in graph.products:
        if product.weight is None or not _is_plain(product, model):
            continue
        if all(uses[name] == 1 for name in (product.weight, product.bias) if name is not None):
            yield _layer(graph, model, product, alive, product.node not in scaled)


def _is_plain(product: Product, model: nn.Module) -> bool:
    path, _, leaf = (product.weight or "").rpartition(".")
    called = list(stack_of(product.node).values())
    if product.groups != 1 or product.inputs is None or leaf != "weight" or called[-1:] != [path]:
        return False
    module = model.get_submodule(path)
    plain = isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd)
    return plain and not takes_a_part(module) and len(arguments(product.node)["weight"].users) == 1


def _layer(
    graph: ChannelGraph, model: nn.Module, product: Product, alive: Flags, free_outputs: bool
) -> _Layer:
    assert product.inputs is not None and product.weight is not None
    given = arguments(product.node)
    weight = graph.tensor(given["weight"]).detach() != 0
    nonzero: Flags = (weight.flatten(2).any(2) if weight.ndim > 2 else weight).cpu().numpy()
    norm, end = _norm_behind(graph, model, product)
    fixed, used = graph.constant(end), graph.used(end)
    labels_in, labels_out = graph.labels[product.inputs], graph.labels[product.outputs]
    alive_in, alive_out = alive[labels_in], alive[labels_out]
    writes = alive_out & used & ~fixed if free_outputs else alive_out
    reads = alive_in & nonzero[writes].any(0)
    if product.node_in is not None:
        reads &= ~_foldable(graph, product)
        reads[list(carriers_of(graph, product, alive).values())] = True
    constants = np.where(fixed & used, graph.values(end), 0.0) if fixed.any() else np.zeros(len(fixed))
    places_in = float(np.prod(graph.shape(given["input"]))) / len(product.inputs)
    places_out = product.scale / float(np.prod(weight.shape[2:]))
    spread = 2 if constants[alive_out & ~writes].any() else 1  # padded, and constants added
    return _Layer(
        product.weight,
        product.scale,
        _Side(labels_in, alive_in, _one_at_least(reads, alive_in), places_in, False),
        _Side(labels_out, alive_out, _one_at_least(writes, alive_out), places_out, True, spread),
        constants,
        norm,
    )


def _norm_behind(graph: ChannelGraph, model: nn.Module, product: Product) -> tuple[str, fx.Node]:
    """The path of a batch norm that alone reads a layer, and the last call in it; no path and the layer's call where there is none.

    A runtime makes one layer of the two, which it could not if something lay between them.
    """
    nothing = "", product.node
    users = list(product.node.users)
    if len(users) != 1 or operator(users[0]) != "batch_norm":
        return nothing
    node, path = users[0], owner(users[0])
    module = model.get_submodule(path)
    if not isinstance(module, _BatchNorm) or takes_a_part(module):
        return nothing
    call = next(reversed(stack_of(node)))
    inside = [node]
    while len(inside[-1].users) == 1 and call in stack_of(after := next(iter(inside[-1].users))):
        inside.append(after)
    read = {source for one in inside for source in one.all_input_nodes} - {product.node, *inside}
    own = all(
        (graph.parameter(source) or "").startswith(f"{path}.") and len(source.users) == 1 for source in read
    )
    axis = graph.axis(inside[-1])
    if not own or axis is None or axis.ids.shape != product.outputs.shape:
        return nothing
    same = (graph.labels[axis.ids] == graph.labels[product.outputs]).all()
    return (path, inside[-1]) if same else nothing


def _foldable(graph: ChannelGraph, product: Product) -> Flags:
    """Constant inputs that the layer can do without: zeros, and where nothing is padded what goes into its bias."""
    node = product.node_in
    assert node is not None
    constant, zero = graph.constant(node), graph.zero(node)
    return constant if product.folds and not product.padded else zero


def _one_at_least(needed: Flags, alive: Flags) -> Flags:
    result = needed.copy()
    if not needed.any():
        result[np.flatnonzero(alive)[:1]] = True
    return result


def _aligned(needed: Flags, alive: Flags, align: int) -> Flags:
    """The needed entries, and others that stay, to a multiple of `align` where so many stay."""
    count = int(needed.sum())
    aligned = min(-(-count // align) * align, int(alive.sum()))
    result = needed.copy()
    result[np.flatnonzero(alive & ~needed)[: aligned - count]] = True
    return result
