"""Concatenation and its opposites: cat, stack, slice, select, split, chunk, unbind."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments, operator, source_of
from compactmtl.graph.effect import Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.reduce import OF_VALUES
from compactmtl.graph.rules.shape import Placed, Rearranged
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View

_SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_chunk", "unsafe_split")


class Concat:
    """cat: along the channel the coordinates stand one after another; elsewhere they go together."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        sources, dim = self._parts(view, node)
        axes = [view.axis(source) for source in sources]
        places = {axis.dims for axis in axes if axis is not None}
        if not places:
            return Effect(pins=tuple(pin for source in sources for pin in view.pins(source)))
        if len(places) > 1:
            return "its inputs have their channels in different places"
        place = places.pop()
        effect = Effect()
        pieces = []
        for source, axis in zip(sources, axes, strict=True):
            if axis is None:
                shape = [view.shape(source)[where] for where in place]
                ids = view.fresh(int(np.prod(shape))).reshape(shape)
                effect += self._unfollowed(view, source, place, ids, effect)
            else:
                ids = axis.ids
            pieces.append(ids)
        if dim in place:
            return effect + Effect((Axis(place, np.concatenate(pieces, place.index(dim))),))
        effect += Effect(unions=tuple((pieces[0], piece) for piece in pieces[1:]))
        for source, piece in zip(sources, pieces, strict=True):
            if view.is_static(source):  # it writes the channel, such as a class token
                keys = view.keys_in(source, piece)
                effect += Effect(roles=tuple((key, "producer") for key in keys))
        return effect + Effect((Axis(place, pieces[0]),))

    @staticmethod
    def _unfollowed(view: View, source: fx.Node, place: tuple[int, ...], ids: Ids, before: Effect) -> Effect:
        """What becomes of the channels `ids` of a part without an axis, after what is known of the parts `before` it."""
        adopted = dict(before.adopted)
        if source not in adopted and view.adoptable(source, place, ids):
            return Effect(adopted=((source, Axis(place, ids)),), made=(ids,))
        own = (Pin(adopted[source].ids),) if source in adopted else view.pins(source)
        return Effect(pins=(*own, Pin(ids, "its other parts are not followed")))

    def constant(self, view: View, node: fx.Node) -> Flags:
        sources, dim = self._parts(view, node)
        axis = view.axis(node)
        assert axis is not None
        flags = []
        for source in sources:
            if view.axis(source) is None:
                # the parts of a stack have a dimension less
                along = dim in axis.dims
                shape = [view.shape(source)[d] for d in axis.dims] if along else axis.ids.shape
                flags.append(np.zeros(shape, dtype=bool))
            else:
                static = view.is_static(source)
                flags.append(view.zero(source) if static else view.constant(source))
        if dim in axis.dims:
            return np.concatenate(flags, axis.dims.index(dim))
        together: Flags = np.logical_and.reduce(flags)
        for source in sources[1:]:
            if together.any():
                together &= view.values(sources[0]) == view.values(source)
        return together

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        sources, dim = self._parts(view, node)
        axis = view.axis(node)
        start = 0
        for source in sources:
            if axis is None:
                yield Use(source)
                continue
            if dim not in axis.dims:
                yield Use(source, used)
                continue
            size = view.shape(source)[dim]
            window = [slice(None)] * used.ndim
            window[axis.dims.index(dim)] = slice(start, start + size)
            yield Use(source, used[tuple(window)])
            start += size

    @staticmethod
    def _parts(view: View, node: fx.Node) -> tuple[list[fx.Node], int]:
        given = arguments(node)
        sources = [source for source in given["tensors"] if np.prod(view.shape(source)) > 0]
        return sources, int(given["dim"]) % len(view.shape(node))


class Stack(Concat):
    """stack: a new dimension in front of which the inputs' coordinates go together."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        sources, dim = self._parts(view, node)
        axes = {source: view.axis(source) for source in sources}
        known = next((axis for axis in axes.values() if axis is not None), None)
        if known is None:
            return "its inputs' channels are not tracked alike"
        adopted = [source for source in axes if view.adoptable(source, known.dims, known.ids)]
        axes |= dict.fromkeys(adopted, known)
        if any(axis is None or axis.dims != known.dims for axis in axes.values()):
            return "its inputs' channels are not tracked alike"
        ids = [axis.ids for axis in axes.values() if axis is not None]
        return Effect(
            (Axis(tuple(d + (d >= dim) for d in known.dims), ids[0]),),
            unions=tuple((ids[0], other) for other in ids[1:]),
            adopted=tuple((source, known) for source in adopted),
        )


class Gate:
    """glu: one half of the channels times the sigmoid of the other; entry i of both goes together."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = source_of(node)
        axis, dim = view.axis(source), self._dim(view, node)
        if axis is None:
            return Effect(pins=view.pins(source))
        if dim not in axis.dims:
            return Effect((axis,))
        values, gates = np.split(axis.ids, 2, axis.dims.index(dim))
        return Effect((Axis(axis.dims, np.ascontiguousarray(values)),), unions=((values, gates),))

    def constant(self, view: View, node: fx.Node) -> Flags:
        source = source_of(node)
        known, zero = self._halves(view, node, view.constant(source), view.zero(source))
        return (known[0] & known[1]) | zero[0]

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        source = source_of(node)
        axis, dim = view.axis(source), self._dim(view, node)
        if axis is None:
            return ()
        if dim in axis.dims:
            (zero,) = self._halves(view, node, view.zero(source))
            used = np.concatenate([used, used & ~zero[0]], axis.dims.index(dim))
        return [Use(source, used)]

    def _halves(self, view: View, node: fx.Node, *flags: Flags) -> list[list[Flags]]:
        axis, dim = view.axis(source_of(node)), self._dim(view, node)
        assert axis is not None
        if dim not in axis.dims:  # each channel gates itself, by other positions
            return [[own, own] for own in flags]
        return [np.split(own, 2, axis.dims.index(dim)) for own in flags]

    @staticmethod
    def _dim(view: View, node: fx.Node) -> int:
        return int(arguments(node)["dim"]) % len(view.shape(node))


class Window(Rearranged):
    """slice, narrow, select: some entries of a dimension."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        given = arguments(node)
        shape = view.shape(source_of(node))
        dim = int(given.get("dim") or 0) % len(shape)
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        selecting = operator(node) == "select"
        if dim not in axis.dims:
            return Placed(tuple(d - (selecting and d > dim) for d in axis.dims), positions)
        where = axis.dims.index(dim)
        if selecting:
            return _after_removal(np.asarray(positions.take(int(given["index"]), axis=where)), axis, dim)
        size = shape[dim]
        start, stop, step = self._bounds(given, size)
        if (start, stop, step) == (0, size, 1):
            return Placed(axis.dims, positions)
        if step != 1:
            return self._strided(axis, positions, where, (start, stop, step))
        window = np.ascontiguousarray(positions.take(range(start, stop), axis=where))
        return Placed(axis.dims, window, _cut(node, axis, where, start, stop))

    @staticmethod
    def _strided(axis: Axis, positions: Ids, where: int, bounds: tuple[int, int, int]) -> Placed | str:
        """Every so many of the channels: those between two of them go together, or the next ones would be others."""
        start, stop, step = bounds
        size = axis.ids.shape[where]
        if step < 1 or size % step or start >= step or len(range(start, stop, step)) * step != size:
            return "it strides over the channel"
        rows = np.moveaxis(axis.ids, where, -1).reshape(-1, step)
        taken = np.ascontiguousarray(positions.take(range(start, stop, step), axis=where))
        reason = "slice: it strides over the channel"
        return Placed(
            axis.dims, taken, Effect(unions=((rows, rows[:, :1]),), joined=((rows.ravel(), reason),))
        )

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


def _after_removal(positions: Ids, axis: Axis, dim: int) -> Placed | str:
    remaining = tuple(d - (d > dim) for d in axis.dims if d != dim)
    if not remaining:
        return "it picks a single channel"
    return Placed(remaining, np.ascontiguousarray(positions))


def _cut(node: fx.Node, axis: Axis, where: int, start: int, stop: int) -> Effect:
    """A cut into equal parts is written as a share of the whole: the parts keep equal counts."""
    size = axis.ids.shape[where]
    length = stop - start
    effect = Effect(sized=((node, axis.ids),))
    if length and size % length == 0 and start % length == 0 and axis.ids.ndim == 1:
        effect += Effect(grids=(Grid(axis.ids.reshape(size // length, length)),))
    return effect


class Split:
    """split, chunk, unbind: the parts are read by getitem."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = source_of(node)
        axis = view.axis(source)
        if axis is None:
            return Effect(pins=view.pins(source))
        dim = split_dim(view, node)
        if dim not in axis.dims:
            return Effect()
        where = axis.dims.index(dim)
        if operator(node) == "unbind":
            rows = np.moveaxis(axis.ids, where, 0)
            return Effect(grids=(Grid(rows.reshape(len(rows), -1)),))
        sizes = [shape[dim] for shape in part_shapes(node)]
        rows = np.moveaxis(axis.ids, where, -1).reshape(-1, axis.ids.shape[where])
        parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
        if len(set(sizes)) == 1:
            parts = [np.concatenate(parts)]  # one number says the size of all parts
        return Effect(sized=((node, axis.ids),), grids=tuple(map(Grid, parts)))

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return ()  # its parts say what they use


def split_dim(view: View, node: fx.Node) -> int:
    """The dimension that a split cuts."""
    return int(arguments(node).get("dim") or 0) % len(view.shape(source_of(node)))


def part_shapes(node: fx.Node) -> list[tuple[int, ...]]:
    """The shapes of a split's parts."""
    return [tuple(int(size) for size in part.shape) for part in node.meta["val"]]


class Part(Rearranged):
    """getitem of a split, a window of the split tensor, or of values and their places."""

    def input(self, node: fx.Node) -> fx.Node:
        parent = source_of(node)
        return source_of(parent) if operator(parent) in _SPLITS else parent

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        parent = source_of(node)
        if view.parts(parent):
            return super().layout(view, node)
        if view.is_pair(parent):
            return Effect(view.layout(parent))
        if parent in view.barriers or operator(parent) not in _SPLITS:
            return Effect()
        return super().layout(view, node)

    def constant(self, view: View, node: fx.Node) -> Flags:
        parent = source_of(node)
        if not view.is_pair(parent):
            return super().constant(view, node)
        flags = view.constant(source_of(parent))
        return flags if node.args[1] == 0 or operator(parent) in OF_VALUES else np.zeros_like(flags)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        parent = source_of(node)
        if not view.is_pair(parent):
            return super().used(view, node, used)
        return [Use(source_of(parent), used)] if view.axis(node) is not None else ()

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        parent = source_of(node)
        index = node.args[1]
        assert isinstance(index, int)
        parts = view.parts(parent)
        if parts:
            return self._result(parts[index], len(view.shape(node)) - 1)
        dim = split_dim(view, parent)
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        unbound = operator(parent) == "unbind"
        if dim not in axis.dims:
            return Placed(tuple(d - (unbound and d > dim) for d in axis.dims), positions)
        where = axis.dims.index(dim)
        if unbound:
            return _after_removal(np.asarray(positions.take(index, axis=where)), axis, dim)
        sizes = [shape[dim] for shape in part_shapes(parent)]
        start = sum(sizes[:index])
        part = positions.take(range(start, start + sizes[index]), axis=where)
        return Placed(axis.dims, np.ascontiguousarray(part))

    @staticmethod
    def _result(places: Ids, last: int) -> Placed:
        """One of several results: its channel lies on its last dimension, that of several rows on its first too."""
        if places.ndim == 1:
            return Placed((last,), places)
        return Placed((last,), places[0]) if len(places) == 1 else Placed((0, last), places)


_concat, _window, _split = Concat(), Window(), Split()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat"), _concat),
    "stack": Stack(),
    "glu": Gate(),
    **dict.fromkeys(("slice", "narrow", "select"), _window),
    **dict.fromkeys(_SPLITS, _split),
    "getitem": Part(),
}
