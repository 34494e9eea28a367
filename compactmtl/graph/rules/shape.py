"""View, flatten, permute, expand: where each coordinate lies after the shape has changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments, operator, source_of
from compactmtl.graph.effect import Effect, Moved, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View


@dataclass(frozen=True, eq=False)
class Placed:
    """Where an axis lies in the output: its dims and, in their shape, each entry's place in the flattened input axis."""

    dims: tuple[int, ...]
    places: Ids
    effect: Effect = field(default_factory=Effect)  # what comes with it


class Rearranged(ABC):
    """Operators of one tensor that move its entries; `Effect.moved` says where each entry was."""

    @abstractmethod
    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        """Where the axis lies in the output, or why it cannot be followed."""

    def input(self, node: fx.Node) -> fx.Node:
        return source_of(node)

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source = self.input(node)
        layout = view.layout(source)
        if view.is_computed(node) and len(layout) > 1:
            return self._static(view, node)
        if len(layout) != 1:
            return Effect(pins=view.pins(source))
        placed = self.place(view, node, layout[0])
        if isinstance(placed, str):
            return placed
        axis = Axis(placed.dims, layout[0].ids.ravel()[placed.places])
        return placed.effect + Effect((axis,), moved=Moved(source, placed.places))

    def _static(self, view: View, node: fx.Node) -> Effect:
        """Of several axes, those that are still apart afterwards."""
        placed = [(axis, self.place(view, node, axis)) for axis in view.layout(self.input(node))]
        followed = [(axis, where) for axis, where in placed if not isinstance(where, str)]
        dims = [dim for _, where in followed for dim in where.dims]
        effect = Effect()
        for axis, where in followed:
            effect += where.effect
            if any(dims.count(dim) > 1 for dim in where.dims) or len(where.dims) > 1:
                effect += Effect(pins=(Pin(axis.ids),))
            else:
                effect += Effect((Axis(where.dims, axis.ids.ravel()[where.places]),))
        lost = (axis for axis, where in placed if isinstance(where, str))
        return effect + Effect(pins=tuple(Pin(axis.ids) for axis in lost))

    def constant(self, view: View, node: fx.Node) -> Flags:
        moved = view.moved(node)
        assert moved is not None
        flags: Flags = view.constant(moved.source).ravel()[moved.places]
        return flags

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        source = self.input(node)
        axis, moved = view.axis(source), view.moved(node)
        if axis is None or moved is None:
            return [Use(source)]
        flags = np.zeros(axis.ids.size, dtype=bool)
        np.logical_or.at(flags, moved.places.ravel(), used.ravel())
        return [Use(source, flags.reshape(axis.ids.shape))]


def blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the smallest runs of dimensions of two shapes that hold the same number of entries."""
    pairs: list[tuple[list[int], list[int]]] = []
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
        pairs.append((one, other))
    return pairs


_SIZES_GIVEN = frozenset(("view", "reshape", "_unsafe_view", "unflatten"))


class Reshape(Rearranged):
    """view, reshape, flatten, unsqueeze, squeeze: the same entries in the same order."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        if "dtype" in arguments(node):
            return "it reads the bits as numbers of another type"
        effect = super().layout(view, node)
        return effect if isinstance(effect, str) else effect + Effect(reshapes=True)

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        before, after = view.shape(source_of(node)), view.shape(node)
        one: list[int] = []
        other: list[int] = []
        for left, right in blocks(before, after):
            if set(left) & set(axis.dims):
                one += left
                other += right
        entry = np.arange(axis.ids.size).reshape([before[dim] if dim in axis.dims else 1 for dim in one])
        grid = np.broadcast_to(entry, [before[dim] for dim in one]).reshape([after[dim] for dim in other])
        varying = [k for k in range(grid.ndim) if (grid != grid.take([0], axis=k)).any()]
        if not varying:
            # An axis of one channel may sit on any dimension of size 1.
            varying = [k for k in range(grid.ndim) if grid.shape[k] == 1][:1]
        if not varying:
            return "it spreads one channel over positions"
        index = tuple(slice(None) if k in varying else 0 for k in range(grid.ndim))
        positions = np.ascontiguousarray(grid[index])
        ids = axis.ids.ravel()[positions]
        effect = Effect()
        if ids.ndim > 1:
            upper = ids[..., 0].reshape(-1, ids.shape[-2]) if ids.ndim > 2 else None
            effect += Effect(grids=(Grid(ids.reshape(-1, ids.shape[-1]), upper=upper),))
        # A single head is a dimension of 1, but its width is counted all the same; so are those of a parameter.
        single = len(one) != len(other) and operator(node) in _SIZES_GIVEN
        if len(varying) > 1 or len(axis.dims) > 1 or single or view.is_computed(node):
            effect += Effect(sized=((node, ids),))
        return Placed(tuple(other[k] for k in varying), positions, effect)


class Permute(Rearranged):
    """permute and transpose."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        order = self._order(node, len(view.shape(source_of(node))))
        moved = [order.index(dim) for dim in axis.dims]
        sort = np.argsort(moved)
        effect = Effect()
        if moved != sorted(moved):
            # Walked in another order from here on, each row has to keep the same columns.
            effect = Effect(grids=(Grid(axis.ids.reshape(-1, axis.ids.shape[-1]), product=True),))
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape).transpose(sort)
        return Placed(tuple(sorted(moved)), np.ascontiguousarray(positions), effect)

    @staticmethod
    def _order(node: fx.Node, rank: int) -> list[int]:
        """The input's dimension that each dimension of the output is."""
        given = arguments(node)
        if "dims" in given:
            return [int(dim) % rank for dim in given["dims"]]
        if "source" in given:
            ends = (given["source"], given["destination"])
            one, other = ([int(d) % rank for d in ([end] if isinstance(end, int) else end)] for end in ends)
            rest = iter(dim for dim in range(rank) if dim not in one)
            return [one[other.index(dim)] if dim in other else next(rest) for dim in range(rank)]
        order = list(range(rank))
        if "dim0" in given or "axis0" in given:
            first, second = (int(given[f"dim{i}" if "dim0" in given else f"axis{i}"]) % rank for i in (0, 1))
            order[first], order[second] = order[second], order[first]
        elif operator(node) in ("mT", "mH", "adjoint"):
            order[-2:] = order[:-3:-1]
        else:
            order.reverse()
        return order


class Expand(Rearranged):
    """expand along dimensions that carry no channel."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        before, after = view.shape(source_of(node)), view.shape(node)
        offset = len(after) - len(before)
        dims = tuple(dim + offset for dim in axis.dims)
        if any(after[dim] != before[dim - offset] for dim in dims):
            return "it repeats the channel"
        return Placed(dims, np.arange(axis.ids.size).reshape(axis.ids.shape))


class Repeat(Rearranged):
    """repeat and tile: all channels one after another, as often as asked."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        before, after = view.shape(source_of(node)), view.shape(node)
        offset = len(after) - len(before)
        times = [after[dim + offset] // max(before[dim], 1) for dim in axis.dims]
        if axis.ids.size == 1 and max(times) > 1:
            return "it repeats the channel"  # often as many times as another tensor has channels
        positions = np.tile(np.arange(axis.ids.size).reshape(axis.ids.shape), times)
        return Placed(tuple(dim + offset for dim in axis.dims), positions)


class Interleave(Rearranged):
    """repeat_interleave: each channel one after another, as often as asked."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        given = arguments(node)
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        if given.get("dim") is None:
            return "it flattens the channel"
        dim = int(given["dim"]) % len(view.shape(node))
        if dim not in axis.dims:
            return Placed(axis.dims, positions)
        times = given["repeats"]
        if not isinstance(times, int) or given.get("output_size") is not None or axis.ids.size == 1:
            return "it repeats the channel"
        return Placed(axis.dims, np.repeat(positions, times, axis=axis.dims.index(dim)))


class Flip(Rearranged):
    """flip: the last entry first."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        rank = len(view.shape(node))
        flipped = {int(dim) % rank for dim in arguments(node)["dims"]}
        positions = np.arange(axis.ids.size).reshape(axis.ids.shape)
        where = [k for k, dim in enumerate(axis.dims) if dim in flipped]
        return Placed(axis.dims, np.ascontiguousarray(np.flip(positions, tuple(where))))


class ChannelShuffle(Rearranged):
    """channel_shuffle: the channels as (groups, rest), walked the other way round."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        if axis.dim != 1:
            return "the channel is not where it is shuffled from"
        groups = int(arguments(node)["groups"])
        grid = Grid(axis.ids.reshape(groups, -1), product=True)
        return Placed((1,), np.arange(axis.ids.size).reshape(groups, -1).T.ravel(), Effect(grids=(grid,)))


class PixelUnshuffle(Rearranged):
    """pixel_unshuffle: each channel becomes r² of them."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        rank = len(view.shape(source_of(node)))
        if axis.dim != rank - 3:
            return "the channel is not where it is shuffled from"
        square = int(arguments(node)["downscale_factor"]) ** 2
        return Placed((rank - 3,), np.repeat(np.arange(axis.ids.size), square))


class PixelShuffle(Rearranged):
    """pixel_shuffle: r² channels become one, and go together."""

    def place(self, view: View, node: fx.Node, axis: Axis) -> Placed | str:
        rank = len(view.shape(source_of(node)))
        if axis.dim != rank - 3:
            return "the channel is not where it is shuffled from"
        square = int(arguments(node)["upscale_factor"]) ** 2
        rows = axis.ids.reshape(-1, square)
        effect = Effect(unions=((rows, rows[:, :1]),))
        return Placed((rank - 3,), np.arange(0, axis.ids.size, square), effect)

    def constant(self, view: View, node: fx.Node) -> Flags:
        source = source_of(node)
        square = int(arguments(node)["upscale_factor"]) ** 2
        flags = view.constant(source).reshape(-1, square)
        if not flags.any():
            return flags[:, 0]
        values = view.values(source).reshape(-1, square)
        same: Flags = flags.all(1) & (values == values[:, :1]).all(1)
        return same

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(source_of(node), np.repeat(used, int(arguments(node)["upscale_factor"]) ** 2))]


_reshape, _permute, _expand = Reshape(), Permute(), Expand()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("view", "reshape", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "unflatten"),
            *("view_as", "reshape_as"),
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (
            *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
            *("t", "numpy_T", "mT", "mH", "adjoint"),
        ),
        _permute,
    ),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("repeat", "tile"), Repeat()),
    "flip": Flip(),
    "repeat_interleave": Interleave(),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), ChannelShuffle()),
    "pixel_unshuffle": PixelUnshuffle(),
    "pixel_shuffle": PixelShuffle(),
}
