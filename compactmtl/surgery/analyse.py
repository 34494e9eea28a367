"""Decide which channels go: all that are dead, less what exactness, alignment and plain layers need kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.effect import Product
from compactmtl.graph.space import Flags, Grid, Ids
from compactmtl.surgery.equal_widths import EqualWidths, apply_equal_widths

NOT_FOLDED = "a constant that cannot be folded into what reads it"


@dataclass(frozen=True)
class Constraints:
    """What the channels that stay have to fulfill beside what is live.

    Channel counts are multiples of `align` where some can go. `unbiased` names layers that cannot be given a bias. With
    `whole_units` a unit, which is a head of attention or a group of a convolution, may be removed as a whole. The
    tensors of each of `equal_widths` keep equally many channels. With `whole_norm_groups` a norm over groups of channels loses whole
    groups alone, so that slices are all it takes.
    """

    align: int = 1
    unbiased: frozenset[str] = frozenset()
    whole_units: bool = True
    equal_widths: tuple[EqualWidths, ...] = ()
    whole_norm_groups: bool = False


def choose_alive(
    graph: ChannelGraph, pinned: Flags, constraints: Constraints, reasons: dict[int, str] | None = None
) -> Flags:
    """Which classes stay, (classes,). `pinned` classes stay whatever the analysis says.

    `reasons` receives why each class stays that could have been removed.
    """
    alive = graph.live_classes() | pinned
    choice = _Choice(graph, alive, {} if reasons is None else reasons)
    choice.keep(np.flatnonzero(constants_without_bias(graph, alive, constraints.unbiased)), NOT_FOLDED)
    _complete(choice, constraints)
    return alive


def complete(graph: ChannelGraph, alive: Flags, constraints: Constraints) -> None:
    """Add to `alive`, (classes,), what has to stay beside it: one of each, carriers, equal parts; see `choose_alive`."""
    _complete(_Choice(graph, alive, {}), constraints)


def _complete(choice: _Choice, constraints: Constraints) -> None:
    graph, alive = choice.graph, choice.alive
    while True:
        before = int(alive.sum())
        _keep_followers(choice)  # first: what goes with something that stays is no last one of its own
        _keep_one_of_each(choice)
        _keep_carriers(choice)
        _keep_aligned(choice, constraints.align)
        _keep_grids(choice, constraints.whole_units)
        _keep_more_cells(choice)
        _keep_norm_groups(choice, constraints.whole_norm_groups)
        for widths in constraints.equal_widths:
            extended = alive.copy()
            apply_equal_widths(graph, extended, widths)
            choice.keep(
                np.flatnonzero(extended), "as many as of another tensor that the forward takes for as wide"
            )
        if int(alive.sum()) == before:
            return


@dataclass
class _Choice:
    """The classes that stay so far, and why those that could have gone do."""

    graph: ChannelGraph
    alive: Flags
    reasons: dict[int, str]

    def keep(self, labels: Ids, reason: str) -> None:
        for label in labels[~self.alive[labels]]:
            self.reasons.setdefault(int(label), reason)
        self.alive[labels] = True


def carriers_of(graph: ChannelGraph, product: Product, alive: Flags) -> dict[int, int]:
    """Group -> the input entry that its constants are merged into, of the groups of a padded convolution that need one."""
    constants = removed_constants(graph, product, alive)
    if not product.padded or not constants.any():
        return {}
    node = product.node_in
    assert node is not None
    axis = graph.axis(node)
    assert axis is not None
    candidates = graph.constant(node) & (graph.values(node) != 0)
    stays = candidates & alive[graph.labels[axis.ids]]
    size = np.where(candidates, np.abs(graph.values(node)), -1.0)
    # One that stays is taken before any other.
    rank = np.where(stays, size + size.max() + 1, size).reshape(product.groups, -1)
    written = alive[graph.labels[product.outputs]].reshape(product.groups, -1).any(1)
    needs = constants.reshape(product.groups, -1).any(1) & written
    width = rank.shape[1]
    return {int(group): int(group * width + np.argmax(rank[group])) for group in np.flatnonzero(needs)}


def removed_constants(graph: ChannelGraph, product: Product, alive: Flags) -> Flags:
    """Input entries of a product that go although they hold a constant other than 0, (inputs,)."""
    node = product.node_in
    if node is None or product.inputs is None or not product.folds:
        return np.zeros(0, dtype=bool)
    flags = graph.constant(node)
    if not flags.any():
        return flags
    gone: Flags = flags & (graph.values(node) != 0) & ~alive[graph.labels[product.inputs]]
    return gone


def constants_without_bias(graph: ChannelGraph, alive: Flags, unbiased: frozenset[str]) -> Flags:
    """Classes, not `alive`, of constants that cannot be folded, (classes,).

    A weight that is read twice has one bias, and a parameter used outside a layer may have none.
    """
    held = np.zeros_like(alive)
    shared = Counter(p.weight for p in graph.products if p.weight is not None)
    shared.update(p.bias for p in graph.products if p.bias is not None)
    for product in graph.products:
        several = any(name is not None and shared[name] > 1 for name in (product.weight, product.bias))
        if several or (not product.padded and product.bias is None and product.name in unbiased):
            constants = removed_constants(graph, product, alive)
            if constants.any():
                assert product.inputs is not None
                held[graph.labels[product.inputs[constants]]] = True
    return held


def _keep_one_of_each(choice: _Choice) -> None:
    for binding in choice.graph.bindings:
        classes = choice.graph.labels[binding.ids]
        if not choice.alive[classes].any():
            choice.keep(classes[:1], f"one channel of {binding.name} has to stay")


def _keep_carriers(choice: _Choice) -> None:
    graph = choice.graph
    for product in graph.products:
        for carrier in carriers_of(graph, product, choice.alive).values():
            assert product.inputs is not None
            label = graph.labels[product.inputs[carrier : carrier + 1]]
            choice.keep(label, f"it carries the constants that {product.name} reads")


def _keep_more_cells(choice: _Choice) -> None:
    """An LSTM that projects its outputs has to have more cells than outputs."""
    labels = choice.graph.labels
    for cells, outputs in choice.graph.projected:
        most = int(choice.alive[labels[outputs]].sum(1).max())
        for row in labels[cells]:
            missing = most + 1 - int(choice.alive[row].sum())
            if missing > 0:
                choice.keep(
                    row[~choice.alive[row]][:missing], "an LSTM has more cells than projected outputs"
                )


def _keep_norm_groups(choice: _Choice, always: bool) -> None:
    """What stays of a group that a norm counts is computed of all of it: constants that are not 0 go with all of it or not."""
    graph, alive = choice.graph, choice.alive
    for module in graph.full_width:
        if module.groups == 1:
            continue
        classes = graph.labels[module.ids]
        gone = ~alive[classes]
        mixed = np.ones_like(gone) if always else graph.constant(module.source) & ~graph.zero(module.source)
        rows = gone.reshape(module.groups, -1)
        held = (mixed & gone).reshape(rows.shape).any(1) & ~rows.all(1)
        choice.keep(
            classes.reshape(rows.shape)[held].ravel(),
            "group_norm: it normalizes over the channels of a group",
        )


def _keep_aligned(choice: _Choice, align: int) -> None:
    graph, alive = choice.graph, choice.alive
    if align == 1:
        return
    for product in graph.products:
        classes = graph.labels[product.outputs]
        kept = int(alive[classes].sum())
        aligned = min(-(-kept // align) * align, len(classes))
        if kept < aligned:
            dead, first = np.unique(classes[~alive[classes]], return_index=True)
            choice.keep(dead[np.argsort(first)][: aligned - kept], f"it fills up a multiple of {align}")


def _keep_grids(choice: _Choice, whole_units: bool) -> None:
    graph, alive = choice.graph, choice.alive
    # Products first: they say which entries stay, the others only how many, and may choose any.
    gone = gone_with_units(graph, alive) if whole_units else np.zeros_like(alive)
    for grid in sorted(graph.grids, key=lambda grid: not grid.product):
        _keep_grid(choice, grid, gone)


def _keep_followers(choice: _Choice) -> None:
    labels = choice.graph.labels
    for ids, rows in choice.graph.followers:
        choice.keep(labels[ids[choice.alive[labels[rows]].any(1)]], "what it goes with stays")


def gone_with_units(graph: ChannelGraph, alive: Flags) -> Flags:
    """Classes that go as part of a unit (a head or convolution group), all of whose entries go, (classes,)."""
    rows = [graph.labels[units] for units in graph.units]
    gone = ~alive
    while True:
        # A class may lie in units of several layers: it goes with all of them or with none.
        whole = [gone[classes].all(1) for classes in rows]
        kept = np.zeros_like(gone)
        inside = np.zeros_like(gone)
        for classes, flags in zip(rows, whole, strict=True):
            kept[classes[~flags]] = True
            inside[classes[flags]] = True
        if (gone == (inside & ~kept)).all():
            return gone
        gone = inside & ~kept


def _keep_grid(choice: _Choice, grid: Grid, gone: Flags) -> None:
    """Every row keeps as many entries as the fullest, but for those in `gone`; of a product grid, the same ones."""
    alive = choice.alive
    classes = choice.graph.labels[grid.resolved(choice.graph.labels)]
    classes = classes[~gone[classes].all(1)]
    if len(classes) == 0:
        return
    kept = alive[classes]
    counts = kept.sum(1)
    if grid.product:
        choice.keep(classes[:, kept.any(0)].ravel(), grid.reason)
    elif counts.min() < counts.max():
        for row in np.flatnonzero(counts < counts.max()):
            dead = classes[row][~kept[row]]
            choice.keep(dead[: counts.max() - counts[row]], grid.reason)
