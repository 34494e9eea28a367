"""View, flatten, permute, concat: where each coordinate lies after the shape has changed."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule, arguments
from compactmtl.graph.space import Axis, Flags, Ids


class Rearranged:
    """Operators of one tensor that move entries: `positions` gives, for each output entry, its input entry."""

    def place(self, analysis: Analysis, node: fx.Node, axis: Axis) -> tuple[int, Ids] | str:
        raise NotImplementedError

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = arguments(node)["self"]
        axis = analysis.axis(source)
        if axis is None:
            analysis.pin(source)
            analysis.layouts[node] = ()
            return None
        placed = self.place(analysis, node, axis)
        if isinstance(placed, str):
            return placed
        dim, positions = placed
        analysis.layouts[node] = (Axis(dim, axis.ids[positions]),)
        self._positions(analysis)[node] = positions
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        source = arguments(node)["self"]
        flags: Flags = analysis.constant(source)[self._positions(analysis)[node]]
        return flags

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source = arguments(node)["self"]
        axis = analysis.axis(source)
        if axis is not None:
            flags = np.zeros(len(axis.ids), dtype=bool)
            np.logical_or.at(flags, self._positions(analysis)[node], used)
            analysis.use(source, flags)

    @staticmethod
    def _positions(analysis: Analysis) -> dict[fx.Node, Ids]:
        return analysis.positions


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the smallest runs of dimensions of two shapes that hold the same number of entries."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        one, other = [i] if i < len(before) else [], [j] if j < len(after) else []
        left = before[i] if one else 1
        right = after[j] if other else 1
        i, j = i + len(one), j + len(other)
        while left != right:
            if left < right:
                one.append(i)
                left *= before[i]
                i += 1
            else:
                other.append(j)
                right *= after[j]
                j += 1
        blocks.append((one, other))
    return blocks


class Reshape(Rearranged):
    """view, reshape, flatten, unsqueeze, squeeze: the same entries in the same order."""

    def place(self, analysis: Analysis, node: fx.Node, axis: Axis) -> tuple[int, Ids] | str:
        before, after = analysis.shape(arguments(node)["self"]), analysis.shape(node)
        for one, other in _blocks(before, after):
            if axis.dim not in one:
                continue
            sizes = tuple(before[dim] for dim in one)
            entry = np.arange(len(axis.ids)).reshape([-1 if dim == axis.dim else 1 for dim in one])
            grid = np.broadcast_to(entry, sizes).reshape([after[dim] for dim in other])
            varying = [k for k in range(grid.ndim) if (grid != grid.take([0], axis=k)).any()]
            if len(varying) > 1:
                return "it splits the channel into several dimensions"
            # An axis of one channel may sit on any dimension of size 1.
            kept = varying[0] if varying else next((k for k in range(grid.ndim) if grid.shape[k] == 1), None)
            if kept is None:
                return "it spreads the channel over positions"
            index = [0] * grid.ndim
            index[kept] = slice(None)  # type: ignore[call-overload]
            return other[kept], np.ascontiguousarray(grid[tuple(index)])
        return "the channel is not among its dimensions"


class Permute(Rearranged):
    """permute and transpose."""

    def place(self, analysis: Analysis, node: fx.Node, axis: Axis) -> tuple[int, Ids] | str:
        given = arguments(node)
        rank = len(analysis.shape(given["self"]))
        order = list(range(rank))
        if "dims" in given:
            order = [int(dim) % rank for dim in given["dims"]]
        else:
            one, other = int(given["dim0"]) % rank, int(given["dim1"]) % rank
            order[one], order[other] = order[other], order[one]
        return order.index(axis.dim), np.arange(len(axis.ids))


class Concat:
    """cat: along the channel the coordinates stand one after another; elsewhere they go together."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        sources, dim = self._parts(analysis, node)
        axes = [analysis.axis(source) for source in sources]
        places = {axis.dim for axis in axes if axis is not None}
        if not places:
            for source in sources:
                analysis.pin(source)
            analysis.layouts[node] = ()
            return None
        if len(places) > 1:
            return "its inputs have their channels in different places"
        place = places.pop()
        pieces = []
        for source, axis in zip(sources, axes, strict=True):
            if axis is None:
                analysis.pin(source)
                ids = analysis.space.fresh(analysis.shape(source)[place])
                analysis.space.pin(ids)
            else:
                ids = axis.ids
            pieces.append(ids)
        if dim == place:
            analysis.layouts[node] = (Axis(place, np.concatenate(pieces)),)
        else:
            for piece in pieces[1:]:
                analysis.space.union(pieces[0], piece)
            analysis.layouts[node] = (Axis(place, pieces[0]),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        sources, dim = self._parts(analysis, node)
        axis = analysis.axis(node)
        assert axis is not None
        flags = [
            analysis.constant(source)
            if analysis.axis(source) is not None and analysis.parameter(source) is None
            else np.zeros(analysis.shape(source)[axis.dim], dtype=bool)
            for source in sources
        ]
        if dim == axis.dim:
            return np.concatenate(flags)
        together: Flags = np.logical_and.reduce(flags)
        first = sources[0]
        for source in sources[1:]:
            if together.any():
                together &= analysis.values[first] == analysis.values[source]
        return together

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        sources, dim = self._parts(analysis, node)
        axis = analysis.axis(node)
        if axis is None:
            return
        start = 0
        for source in sources:
            size = analysis.shape(source)[axis.dim]
            if analysis.axis(source) is not None:
                analysis.use(source, used[start : start + size] if dim == axis.dim else used)
            start += size if dim == axis.dim else 0

    @staticmethod
    def _parts(analysis: Analysis, node: fx.Node) -> tuple[list[fx.Node], int]:
        given = arguments(node)
        sources = [source for source in given["tensors"] if np.prod(analysis.shape(source)) > 0]
        return sources, int(given["dim"]) % len(analysis.shape(node))


_reshape, _permute = Reshape(), Permute()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "unflatten", "view_as"),
        _reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "t"), _permute),
    "cat": Concat(),
    "concat": Concat(),
}
