"""Which channels may be put in another order, and the order that is chosen, as the places that each of them moves.

Channels may change places within a *run*: classes that follow one another, in the same order, wherever any of them occurs,
in every tensor and every parameter. Then whoever takes them by position, such as a split or a concatenation, still takes the same
ones. Operators that are followed treat the channels of a run alike, for a channel of zeros among them may leave; what is not sure to do so keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import fx

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Axis, Flags, Ids


@dataclass(frozen=True, eq=False)
class Order:
    """By how many places each class moves, (classes,), among the channels that stay of every tensor that it is in."""

    moves: Ids

    @classmethod
    def unchanged(cls, classes: int) -> Order:
        """Of all classes none moves."""
        return cls(np.zeros(classes, dtype=np.int64))

    def with_run(self, run: Ids, order: Ids) -> Order:
        """The same, and the classes of `run` in `order`: their places before, in the order in which they are after."""
        moves = self.moves.copy()
        moves[run[order]] = np.arange(len(run)) - order
        return Order(moves)

    def of(self, classes: Ids) -> Ids:
        """For the classes of a tensor's channels that stay, (n,), the places before of what comes first, second, ..."""
        return np.argsort(np.arange(len(classes)) + self.moves[classes], kind="stable")

    def kept(self, classes: Ids, stays: Flags) -> Ids:
        """The places before of the entries that stay, of entries of these classes, (n,), in their order."""
        keep: Ids = np.flatnonzero(stays)
        return keep[self.of(classes[keep])]

    def in_one_piece(self, classes: Ids, stays: Flags, taken: Flags) -> bool:
        """Whether the `taken` of the entries that stay follow one another, of entries of these classes, (n,)."""
        places = np.flatnonzero(taken[self.kept(classes, stays)])
        return len(places) == 0 or bool(places[-1] - places[0] + 1 == len(places))


def find_runs(graph: ChannelGraph, alive: Flags) -> list[Ids]:
    """All runs of two or more of the `alive` classes, each in its present order."""
    rows = {classes.tobytes(): classes for classes in _rows(graph, alive)}
    if not rows:
        return []
    classes = np.concatenate(list(rows.values()))
    ends = np.zeros(len(classes), dtype=bool)
    ends[np.cumsum([len(row) for row in rows.values()]) - 1] = True
    begin, after = classes[:-1][~ends[:-1]], classes[1:][~ends[:-1]]
    pairs, counts = np.unique(begin * graph.classes + after, return_counts=True)
    begin, after = np.divmod(pairs, graph.classes)
    # One follows the other wherever either is.
    times = np.bincount(classes, minlength=graph.classes)
    blocked = _blocked(graph)
    linked = (times[begin] == counts) & (times[after] == counts) & (begin != after)
    linked &= ~(blocked[begin] | blocked[after])
    begin, after = begin[linked], after[linked]
    following = np.full(graph.classes, -1, dtype=np.int64)
    following[begin] = after
    return list(_chains(following, after))


def _rows(graph: ChannelGraph, alive: Flags) -> Iterator[Ids]:
    """What stays of every list of channels: the axes of all tensors and the dimensions of all parameters."""
    nodes = {source for node in graph.calls for source in (node, *node.all_input_nodes)}
    axes = (axis.ids for node in nodes for axis in graph.layout(node))
    for ids in (*axes, *(binding.ids for binding in graph.bindings)):
        classes = graph.labels[ids.ravel()]
        classes = classes[alive[classes]]
        if len(classes):
            yield classes


def _blocked(graph: ChannelGraph) -> Flags:
    """Classes that keep their places: of inputs, outputs and barriers, of groups, heads and parts, of operators without a rule."""
    blocked = graph.fixed.copy()

    def block(several: Iterable[Ids]) -> None:
        for ids in several:
            blocked[graph.labels[ids]] = True

    block(axis.ids for node in graph.calls for axis in graph.layout(node) if axis.ids.ndim > 1)
    block(binding.ids for binding in graph.bindings if binding.groups > 1)
    block(module.ids for module in graph.full_width if module.groups > 1)
    block(counted.ids for counted in graph.counted.values() if counted.groups > 1)
    block(grid.ids for grid in graph.grids)
    block(grid.upper for grid in graph.grids if grid.upper is not None)
    block(graph.units)
    block(ids for pair in (*graph.followers, *graph.projected) for ids in pair)
    block(axis.ids for node in graph.calls if graph.learned(node) for axis in _touched(graph, node))
    return blocked


def _touched(graph: ChannelGraph, node: fx.Node) -> Iterator[Axis]:
    for handled in (node, *graph.tensors_in(node)):
        yield from graph.layout(handled)


def _chains(following: Ids, followers: Ids) -> Iterator[Ids]:
    """Each chain of classes of which one follows the other; one that ends where it began is left out."""
    begins = np.flatnonzero(following >= 0)
    for begin in begins[~np.isin(begins, followers)]:
        chain = [int(begin)]
        while (after := int(following[chain[-1]])) >= 0:
            chain.append(after)
        yield np.array(chain, dtype=np.int64)
