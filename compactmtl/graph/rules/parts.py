"""Concatenation and its opposites: cat, stack, slice, select, split, chunk, unbind."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments, operator, source_of
from compactmtl.graph.rules.recurrent import Recurrent
from compactmtl.graph.rules.reduce import Pair
from compactmtl.graph.rules.shape import Rearranged
from compactmtl.graph.space import Axis, Flags, Ids

_SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_chunk", "unsafe_split")


class Concat:
    """cat: along the channel the coordinates stand one after another; elsewhere they go together."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        sources, dim = self._parts(analysis, node)
        axes = [analysis.axis(source) for source in sources]
        places = {axis.dims for axis in axes if axis is not None}
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
                shape = [analysis.shape(source)[where] for where in place]
                ids = analysis.space.fresh(int(np.prod(shape))).reshape(shape)
                if analysis.adopt(source, place, ids):
                    analysis.made.append(ids)
                else:
                    analysis.pin(source)
                    analysis.stop(node, ids, "its other parts are not followed")
            else:
                ids = axis.ids
            pieces.append(ids)
        if dim in place:
            analysis.layouts[node] = (Axis(place, np.concatenate(pieces, place.index(dim))),)
        else:
            for piece in pieces[1:]:
                analysis.space.union(pieces[0], piece)
            for source, piece in zip(sources, pieces, strict=True):
                if analysis.is_static(source):  # it writes the channel, such as a class token
                    analysis.mark(source, piece, "producer")
            analysis.layouts[node] = (Axis(place, pieces[0]),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        sources, dim = self._parts(analysis, node)
        axis = analysis.axis(node)
        assert axis is not None
        flags = []
        for source in sources:
            if analysis.axis(source) is None:
                # the parts of a stack have a dimension less
                along = dim in axis.dims
                shape = [analysis.shape(source)[d] for d in axis.dims] if along else axis.ids.shape
                flags.append(np.zeros(shape, dtype=bool))
            else:
                static = analysis.is_static(source)
                flags.append(analysis.zero(source) if static else analysis.constant(source))
        if dim in axis.dims:
            return np.concatenate(flags, axis.dims.index(dim))
        together: Flags = np.logical_and.reduce(flags)
        for source in sources[1:]:
            if together.any():
                together &= analysis.values[sources[0]] == analysis.values[source]
        return together

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        sources, dim = self._parts(analysis, node)
        axis = analysis.axis(node)
        start = 0
        for source in sources:
            if axis is None:
                analysis.use_all(source)
                continue
            if dim not in axis.dims:
                analysis.use(source, used)
                continue
            size = analysis.shape(source)[dim]
            window = [slice(None)] * used.ndim
            window[axis.dims.index(dim)] = slice(start, start + size)
            analysis.use(source, used[tuple(window)])
            start += size

    @staticmethod
    def _parts(analysis: Analysis, node: fx.Node) -> tuple[list[fx.Node], int]:
        given = arguments(node)
        sources = [source for source in given["tensors"] if np.prod(analysis.shape(source)) > 0]
        return sources, int(given["dim"]) % len(analysis.shape(node))


class Stack(Concat):
    """stack: a new dimension in front of which the inputs' coordinates go together."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        sources, dim = self._parts(analysis, node)
        known = next((axis for source in sources if (axis := analysis.axis(source)) is not None), None)
        for source in sources:
            if known is not None:
                analysis.adopt(source, known.dims, known.ids)
        axes = [analysis.axis(source) for source in sources]
        if any(axis is None for axis in axes) or len({axis.dims for axis in axes if axis}) != 1:
            return "its inputs' channels are not tracked alike"
        first = axes[0]
        assert first is not None
        for axis in axes[1:]:
            assert axis is not None
            analysis.space.union(first.ids, axis.ids)
        analysis.layouts[node] = (Axis(tuple(d + (d >= dim) for d in first.dims), first.ids),)
        return None


class Gate:
    """glu: one half of the channels times the sigmoid of the other; entry i of both goes together."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis, dim = analysis.axis(source), self._dim(analysis, node)
        if axis is None:
            analysis.pin(source)
            analysis.layouts[node] = ()
        elif dim not in axis.dims:
            analysis.layouts[node] = (axis,)
        else:
            values, gates = np.split(axis.ids, 2, axis.dims.index(dim))
            analysis.space.union(values, gates)
            analysis.layouts[node] = (Axis(axis.dims, np.ascontiguousarray(values)),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        source = source_of(node)
        known, zero = self._halves(analysis, node, analysis.constant(source), analysis.zero(source))
        return (known[0] & known[1]) | zero[0]

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        source = source_of(node)
        axis, dim = analysis.axis(source), self._dim(analysis, node)
        if axis is None:
            return
        if dim in axis.dims:
            (zero,) = self._halves(analysis, node, analysis.zero(source))
            used = np.concatenate([used, used & ~zero[0]], axis.dims.index(dim))
        analysis.use(source, used)

    def _halves(self, analysis: Analysis, node: fx.Node, *flags: Flags) -> list[list[Flags]]:
        axis, dim = analysis.axis(source_of(node)), self._dim(analysis, node)
        assert axis is not None
        if dim not in axis.dims:  # each channel gates itself, by other positions
            return [[own, own] for own in flags]
        return [np.split(own, 2, axis.dims.index(dim)) for own in flags]

    @staticmethod
    def _dim(analysis: Analysis, node: fx.Node) -> int:
        return int(arguments(node)["dim"]) % len(analysis.shape(node))


class Window(Rearranged):
    """slice, narrow, select: some entries of a dimension."""

    def place(self, analysis: Analysis, node: fx.Node, axis: Axis) -> tuple[tuple[int, ...], Ids] | str:
        given = arguments(node)
        shape = analysis.shape(source_of(node))
        dim = int(given.get("dim") or 0) % len(shape)
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        selecting = operator(node) == "select"
        if dim not in axis.dims:
            gone = selecting
            return tuple(d - (gone and d > dim) for d in axis.dims), positions
        where = axis.dims.index(dim)
        if selecting:
            return _after_removal(np.asarray(positions.take(int(given["index"]), axis=where)), axis, dim)
        size = shape[dim]
        start, stop, step = self._bounds(given, size)
        if (start, stop, step) == (0, size, 1):
            return axis.dims, positions
        if step != 1:
            return "it strides over the channel"
        _split_evenly(analysis, node, axis, where, start, stop)
        return axis.dims, np.ascontiguousarray(positions.take(range(start, stop), axis=where))

    @staticmethod
    def _bounds(given: dict[str, object], size: int) -> tuple[int, int, int]:
        def whole(value: object, default: int) -> int:
            return default if value is None else int(value)  # type: ignore[call-overload]

        if "length" in given:
            start = whole(given["start"], 0) % size
            return start, start + whole(given["length"], 0), 1
        return slice(whole(given["start"], 0), whole(given["end"], size), whole(given["step"], 1)).indices(
            size
        )


def _after_removal(positions: Ids, axis: Axis, dim: int) -> tuple[tuple[int, ...], Ids] | str:
    left = tuple(d - (d > dim) for d in axis.dims if d != dim)
    if not left:
        return "it picks a single channel"
    return left, np.ascontiguousarray(positions)


def _split_evenly(analysis: Analysis, node: fx.Node, axis: Axis, where: int, start: int, stop: int) -> None:
    """A cut into equal parts is written as a share of the whole: the parts keep equal counts."""
    size = axis.ids.shape[where]
    length = stop - start
    analysis.sized[node] = axis.ids
    if length and size % length == 0 and start % length == 0 and axis.ids.ndim == 1:
        analysis.space.grid(axis.ids.reshape(size // length, length))


class Split:
    """split, chunk, unbind: the parts are read by getitem."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = source_of(node)
        axis = analysis.axis(source)
        analysis.layouts[node] = ()
        if axis is None:
            analysis.pin(source)
            return None
        dim = split_dim(analysis, node)
        if dim in axis.dims:
            sizes = [shape[dim] if operator(node) != "unbind" else 1 for shape in part_shapes(node, source)]
            where = axis.dims.index(dim)
            if operator(node) == "unbind":
                analysis.space.grid(np.moveaxis(axis.ids, where, 0).reshape(len(sizes), -1))
                return None
            analysis.sized[node] = axis.ids
            rows = np.moveaxis(axis.ids, where, -1).reshape(-1, axis.ids.shape[where])
            parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
            if len(set(sizes)) == 1:
                # One number says the size of all parts.
                analysis.space.grid(np.concatenate(parts))
            else:
                for part in parts:
                    analysis.space.grid(part)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        return None  # its parts say what they use


def split_dim(analysis: Analysis, node: fx.Node) -> int:
    """The dimension that a split cuts."""
    return int(arguments(node).get("dim") or 0) % len(analysis.shape(source_of(node)))


def part_shapes(node: fx.Node, source: fx.Node) -> list[tuple[int, ...]]:
    """The shapes of a split's parts."""
    return [tuple(int(size) for size in part.shape) for part in node.meta["val"]]


class Part(Rearranged):
    """getitem of a split, a window of the split tensor, or of values and their places."""

    def input(self, node: fx.Node) -> fx.Node:
        parent = source_of(node)
        return source_of(parent) if operator(parent) in _SPLITS else parent

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        parent = source_of(node)
        if parent in analysis.parts:
            return super().layout(analysis, node)
        if parent in analysis.barriers or (
            operator(parent) not in _SPLITS and not self._paired(analysis, node)
        ):
            analysis.layouts[node] = ()
            return None
        if self._paired(analysis, node):
            analysis.layouts[node] = analysis.layouts[parent]
            return None
        return super().layout(analysis, node)

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        if not self._paired(analysis, node):
            return super().constant(analysis, node)
        flags = analysis.constant(source_of(source_of(node)))
        return flags if node.args[1] == 0 else np.zeros_like(flags)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        if not self._paired(analysis, node):
            super().used(analysis, node, used)
        elif analysis.axis(node) is not None:
            analysis.use(source_of(source_of(node)), used)

    @staticmethod
    def _paired(analysis: Analysis, node: fx.Node) -> bool:
        """Whether it is one of the two results of an operator such as max_pool2d_with_indices."""
        return isinstance(analysis.rules.get(source_of(node)), Pair)

    def place(self, analysis: Analysis, node: fx.Node, axis: Axis) -> tuple[tuple[int, ...], Ids] | str:
        parent = source_of(node)
        index = node.args[1]
        assert isinstance(index, int)
        rule = analysis.rules.get(parent)
        if isinstance(rule, Recurrent):
            return rule.part(analysis, parent, index, analysis.shape(node))
        dim = split_dim(analysis, parent)
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        unbound = operator(parent) == "unbind"
        if dim not in axis.dims:
            return tuple(d - (unbound and d > dim) for d in axis.dims), positions
        where = axis.dims.index(dim)
        if unbound:
            return _after_removal(np.asarray(positions.take(index, axis=where)), axis, dim)
        sizes = [shape[dim] for shape in part_shapes(parent, source_of(parent))]
        start = sum(sizes[:index])
        return axis.dims, np.ascontiguousarray(positions.take(range(start, start + sizes[index]), axis=where))


_concat, _window, _split = Concat(), Window(), Split()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat"), _concat),
    "stack": Stack(),
    "glu": Gate(),
    **dict.fromkeys(("slice", "narrow", "select"), _window),
    **dict.fromkeys(_SPLITS, _split),
    "getitem": Part(),
}
