"""Decide which channels go: all that are dead, less what exactness, alignment and plain layers need kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from compactmtl.graph.analysis import Product
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Grid
from compactmtl.surgery.ties import Tie, keep_equal


def choose_alive(
    graph: ChannelGraph,
    align: int,
    pinned: Flags,
    unbiased: frozenset[str] = frozenset(),
    slabs: bool = True,
    ties: Sequence[Tie] = (),
) -> Flags:
    """Which classes stay, (classes,). `pinned` classes stay whatever the analysis says.

    `unbiased` names layers that cannot be given a bias. With `slabs` heads of attention and groups of convolutions may
    go whole. Of each of `ties` all keep as many channels.
    """
    alive = graph.live_classes() | pinned
    alive |= constants_without_bias(graph, alive, unbiased)
    complete(graph, alive, align, slabs, ties)
    return alive


def complete(
    graph: ChannelGraph, alive: Flags, align: int = 1, slabs: bool = True, ties: Sequence[Tie] = ()
) -> None:
    """Add to `alive`, (classes,), what has to stay beside it: one of each, carriers, equal parts; see `choose_alive`."""
    while True:
        before = int(alive.sum())
        _keep_one_of_each(graph, alive)
        _keep_carriers(graph, alive)
        _keep_aligned(graph, alive, align)
        _keep_grids(graph, alive, slabs)
        for tie in ties:
            keep_equal(graph, alive, tie)
        if int(alive.sum()) == before:
            return


def carrier_of(graph: ChannelGraph, product: Product, alive: Flags) -> int | None:
    """The input entry that constants of a padded convolution are merged into, or None where none is needed."""
    constants = removed_constants(graph, product, alive)
    if not product.padded or not constants.any():
        return None
    node = product.node_in
    assert node is not None
    analysis = graph.analysis
    axis = analysis.axis(node)
    assert axis is not None
    candidates = analysis.constant(node) & (analysis.values[node] != 0)
    stays = candidates & alive[graph.labels[axis.ids]]
    pool = stays if stays.any() else candidates
    return int(np.argmax(np.where(pool, np.abs(analysis.values[node]), -1.0)))


def removed_constants(graph: ChannelGraph, product: Product, alive: Flags) -> Flags:
    """Input entries of a product that go although they hold a constant other than 0, (inputs,)."""
    node = product.node_in
    if node is None or product.inputs is None or not product.folds:
        return np.zeros(0, dtype=bool)
    analysis = graph.analysis
    flags = analysis.constant(node)
    if not flags.any():
        return flags
    gone: Flags = flags & (analysis.values[node] != 0) & ~alive[graph.labels[product.inputs]]
    return gone


def constants_without_bias(graph: ChannelGraph, alive: Flags, unbiased: frozenset[str]) -> Flags:
    """Classes, not `alive`, of constants that cannot be folded, (classes,).

    A weight that is read twice has one bias, and a parameter used outside a layer may have none.
    """
    held = np.zeros_like(alive)
    shared = Counter(p.weight for p in graph.analysis.products.values() if p.weight is not None)
    shared.update(p.bias for p in graph.analysis.products.values() if p.bias is not None)
    for product in graph.analysis.products.values():
        several = any(name is not None and shared[name] > 1 for name in (product.weight, product.bias))
        if several or (not product.padded and product.bias is None and product.name in unbiased):
            constants = removed_constants(graph, product, alive)
            if constants.any():
                assert product.inputs is not None
                held[graph.labels[product.inputs[constants]]] = True
    return held


def _keep_one_of_each(graph: ChannelGraph, alive: Flags) -> None:
    for binding in graph.analysis.bindings.values():
        classes = graph.labels[binding.ids]
        if not alive[classes].any():
            alive[classes[0]] = True


def _keep_carriers(graph: ChannelGraph, alive: Flags) -> None:
    for product in graph.analysis.products.values():
        carrier = carrier_of(graph, product, alive)
        if carrier is not None:
            assert product.inputs is not None
            alive[graph.labels[product.inputs[carrier]]] = True


def _keep_aligned(graph: ChannelGraph, alive: Flags, align: int) -> None:
    if align == 1:
        return
    for product in graph.analysis.products.values():
        classes = graph.labels[product.outputs]
        kept = int(alive[classes].sum())
        wanted = min(-(-kept // align) * align, len(classes))
        if kept < wanted:
            dead, first = np.unique(classes[~alive[classes]], return_index=True)
            alive[dead[np.argsort(first)][: wanted - kept]] = True


def _keep_grids(graph: ChannelGraph, alive: Flags, slabs: bool) -> None:
    # Products first: they say which entries stay, the others only how many, and may choose any.
    gone = gone_with_slabs(graph, alive) if slabs else np.zeros_like(alive)
    for grid in sorted(graph.analysis.space.grids, key=lambda grid: not grid.product):
        _keep_grid(graph, alive, grid, gone)


def gone_with_slabs(graph: ChannelGraph, alive: Flags) -> Flags:
    """Classes that go as part of whole slabs, all of whose entries go, (classes,)."""
    rows = [graph.labels[slab] for slab in graph.analysis.space.slabs]
    gone = ~alive
    while True:
        # A class may lie in slabs of several layers: it goes with all of them or with none.
        whole = [gone[classes].all(1) for classes in rows]
        kept = np.zeros_like(gone)
        inside = np.zeros_like(gone)
        for classes, flags in zip(rows, whole, strict=True):
            kept[classes[~flags]] = True
            inside[classes[flags]] = True
        if (gone == (inside & ~kept)).all():
            return gone
        gone = inside & ~kept


def _keep_grid(graph: ChannelGraph, alive: Flags, grid: Grid, gone: Flags) -> None:
    """Every row keeps as many entries as the fullest, but for those in `gone`; of a product grid, the same ones."""
    classes = graph.labels[grid.ids]
    classes = classes[~gone[classes].all(1)]
    if len(classes) == 0:
        return
    kept = alive[classes]
    counts = kept.sum(1)
    if grid.product:
        alive[classes[:, kept.any(0)]] = True
    elif counts.min() < counts.max():
        for row in np.flatnonzero(counts < counts.max()):
            dead = classes[row][~kept[row]]
            alive[dead[: counts.max() - counts[row]]] = True
