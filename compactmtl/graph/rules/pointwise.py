"""Pointwise operators: one coordinate in, the same coordinate out; several inputs go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.calls import MADE, arguments, operator, source_of
from compactmtl.graph.effect import Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags, Grid
from compactmtl.graph.view import View


def _offset(view: View, node: fx.Node, source: fx.Node) -> int:
    """How far right broadcasting moves the dimensions of `source`."""
    return len(view.shape(node)) - len(view.shape(source))


def _placed(view: View, node: fx.Node, source: fx.Node) -> tuple[list[Axis], tuple[Pin, ...]]:
    """The axes of `source` where they lie in the output, and pins of those that are broadcast from one entry."""
    offset = _offset(view, node, source)
    placed, pins = [], []
    for axis in view.layout(source):
        dims = tuple(dim + offset for dim in axis.dims)
        sizes = tuple(view.shape(node)[dim] for dim in dims)
        if axis.ids.shape != sizes and axis.ids.ndim > 1:
            # One entry for all of a row, such as what a head's channels are divided by.
            own = [k for k, size in enumerate(axis.ids.shape) if size != 1 or sizes[k] == 1]
            if own and len(own) < axis.ids.ndim:
                dims, sizes = tuple(dims[k] for k in own), tuple(sizes[k] for k in own)
                axis = Axis(dims, axis.ids.reshape([axis.ids.shape[k] for k in own]))
        if axis.ids.shape == sizes:
            placed.append(Axis(dims, axis.ids))
        else:
            pins.append(Pin(axis.ids))
    return placed, tuple(pins)


def own_size(view: View, node: fx.Node, dim: int) -> int:
    """How many entries a tensor has along a dimension, not counting those that `expand` repeats."""
    size = view.shape(node)[dim]
    if operator(node) in ("expand", "expand_as"):
        before = view.shape(source_of(node))
        dim -= len(view.shape(node)) - len(before)
        size = min(size, before[dim] if dim >= 0 else 1)
    return size


class Pointwise:
    """Any operator that ATen tags pointwise, with broadcasting."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        sources = view.tensors_in(node)
        placed: dict[fx.Node, list[Axis]] = {}
        effect = Effect()
        for source in sources:
            placed[source], pins = _placed(view, node, source)
            effect += Effect(pins=pins)
        if view.is_computed(node):
            return effect + self._static([axis for axes in placed.values() for axis in axes])
        leading = [axis for source in sources if not view.is_static(source) for axis in placed[source]]
        every = [axis for axes in placed.values() for axis in axes]
        main = max(leading or every, key=lambda axis: len(axis.dims), default=None)
        if main is None:
            return effect
        for axis in every:
            if set(axis.dims) <= set(main.dims):
                shape = [axis.ids.shape[axis.dims.index(dim)] if dim in axis.dims else 1 for dim in main.dims]
                if (
                    operator(node) == "mul"
                    and main.ids.ndim == 2
                    and axis.dims == main.dims[1:]
                    and axis is not main
                ):
                    effect += self._of_every_row(main, axis)
                    continue
                if main.ids.ndim == 2 and axis.dims == main.dims[:1]:
                    effect += self._of_whole_rows(main, axis)
                    continue
                order = np.argsort(axis.dims)
                effect += Effect(unions=((main.ids, axis.ids.transpose(order).reshape(shape)),))
            else:
                effect += Effect(pins=(Pin(axis.ids),))
        if leading and operator(node) in ("add", "sub"):
            # What is added writes the channel, such as embeddings of positions.
            for source in filter(view.is_static, sources):
                for axis in placed[source]:
                    if set(axis.dims) <= set(main.dims):
                        keys = view.keys_in(source, axis.ids)
                        effect += Effect(roles=tuple((key, "producer") for key in keys))
        for source in sources:
            effect += self._beside(view, node, source, main, placed[source])
        return effect + Effect((main,))

    @staticmethod
    def _of_every_row(main: Axis, axis: Axis) -> Effect:
        """Factors that all rows share, such as angles of heads: one goes where it goes in every row, and rows go as a whole."""
        columns = np.ascontiguousarray(main.ids.T)
        return Effect(grids=(Grid(main.ids, product=True),), followers=((axis.ids, columns),))

    @staticmethod
    def _of_whole_rows(main: Axis, axis: Axis) -> Effect:
        """One entry for each row, such as a temperature of heads: it goes with all of the row."""
        unit = np.concatenate([main.ids, axis.ids[:, None]], axis=1)
        return Effect(units=(unit,), followers=((axis.ids, main.ids),))

    @staticmethod
    def _static(axes: list[Axis]) -> Effect:
        """All axes of the operands, those on the same dimensions as one."""
        merged: dict[tuple[int, ...], Axis] = {}
        unions = [(merged.setdefault(axis.dims, axis).ids, axis.ids) for axis in axes]
        return Effect(tuple(merged.values()), unions=tuple(unions))

    @staticmethod
    def _beside(view: View, node: fx.Node, source: fx.Node, main: Axis, placed: list[Axis]) -> Effect:
        """What an operand whose entries on the dimensions of the `main` axis are not followed does to it."""
        if any(set(axis.dims) <= set(main.dims) for axis in placed):
            return Effect()  # entries that differ only in its other dimensions go together by now
        offset = _offset(view, node, source)
        dims = tuple(dim - offset for dim in main.dims)
        if view.adoptable(source, dims, main.ids):
            return Effect(adopted=((source, Axis(dims, main.ids)),))
        known = {dim for axis in placed for dim in axis.dims}
        own = (dim for dim in main.dims if dim >= offset and own_size(view, source, dim - offset) > 1)
        return Effect(pins=tuple(Pin(main.ids) for dim in own if dim not in known))

    def constant(self, view: View, node: fx.Node) -> Flags:
        axis = view.axis(node)
        assert axis is not None
        flags = np.ones(axis.ids.shape, dtype=bool)
        zero = np.zeros(axis.ids.shape, dtype=bool)
        for source in view.tensors_in(node):
            shape = self._spread(view, node, source, axis)
            if shape is not None:
                flags &= view.constant(source).reshape(shape)
                zero |= view.zero(source).reshape(shape)
            elif (known := self._over_positions(view, node, source, axis)) is not None:
                flags &= known[0]
                zero |= known[0] & (known[1] == 0)
            elif not view.is_static(source) or view.tensor(source).numel() > 1:
                flags[:] = False  # another tensor's value is mixed into every coordinate
        if operator(node) == "div" and isinstance(node.args[0], fx.Node):
            shape = self._spread(view, node, node.args[0], axis)
            return flags if shape is None else flags | view.zero(node.args[0]).reshape(shape)
        return flags | zero if operator(node) == "mul" else flags

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        axis = view.axis(node)
        sources = view.tensors_in(node)
        for source in sources:
            shape = None if axis is None else self._spread(view, node, source, axis)
            own = view.axis(source)
            if axis is None or shape is None or own is None:
                yield Use(source, exact=True)
                continue
            flags = used
            if operator(node) == "mul" or (operator(node) == "div" and source is not node.args[0]):
                for other in sources:
                    its = self._spread(view, node, other, axis) if other is not source else None
                    if its is not None:
                        flags = flags & ~view.zero(other).reshape(its)
            broadcast = tuple(k for k, size in enumerate(shape) if size == 1)
            yield Use(source, np.asarray(flags.any(axis=broadcast, keepdims=True)).reshape(own.ids.shape))

    @staticmethod
    def _over_positions(
        view: View, node: fx.Node, source: fx.Node, axis: Axis
    ) -> tuple[Flags, NDArray[np.float64]] | None:
        """Of a static tensor with entries for positions too, the channels that are uniform over them and their values."""
        offset = _offset(view, node, source)
        for own in view.layout(source) if view.is_static(source) else ():
            moved = tuple(dim + offset for dim in own.dims)
            if moved == axis.dims and own.ids.shape == axis.ids.shape:
                return view.uniform(source, own)
        return None

    @staticmethod
    def _spread(view: View, node: fx.Node, source: fx.Node, axis: Axis) -> tuple[int, ...] | None:
        """The shape that the entries of `source` have among those of the output's `axis`, 1 where they are broadcast.

        None where they lie elsewhere.
        """
        own = view.axis(source)
        if own is None:
            return None
        offset = _offset(view, node, source)
        dims = tuple(dim + offset for dim in own.dims)
        if dims != tuple(sorted(dims)) or not set(dims) <= set(axis.dims):
            return None
        shape = tuple(own.ids.shape[dims.index(dim)] if dim in dims else 1 for dim in axis.dims)
        full = all(
            size == axis.ids.shape[k] or (size == 1 and own.ids.ndim > 1)
            for k, size in enumerate(shape)
            if axis.dims[k] in dims
        )
        return shape if full and list(axis.dims) == sorted(axis.dims) else None


class Where(Pointwise):
    """where and masked_fill: what is the same constant in both of its choices is one, whatever chooses."""

    def constant(self, view: View, node: fx.Node) -> Flags:
        flags = super().constant(view, node)
        given = arguments(node)
        chosen = [given["self"], given["value"] if "mask" in given else given["other"]]
        one, other = (self._value(view, node, choice) for choice in chosen)
        if one is None or other is None:
            return flags
        same: Flags = flags | (one[0] & other[0] & (one[1] == other[1]))
        return same

    def _value(self, view: View, node: fx.Node, choice: object) -> tuple[Flags, NDArray[np.float64]] | None:
        """Which entries of the output's axis a choice makes constant, and their values."""
        axis = view.axis(node)
        assert axis is not None
        if isinstance(choice, (bool, int, float)):
            return np.ones(axis.ids.shape, dtype=bool), np.full(axis.ids.shape, float(choice))
        if not isinstance(choice, fx.Node):
            return None
        shape = self._spread(view, node, choice, axis)
        if shape is not None:
            flags = view.constant(choice)
            values = view.values(choice) if flags.any() else np.zeros(flags.shape)
            return np.broadcast_to(flags.reshape(shape), axis.ids.shape), values.reshape(shape)
        if (known := self._over_positions(view, node, choice, axis)) is not None:
            return known
        if view.is_static(choice) and not view.is_written_through_a_view(choice):
            value = view.tensor(choice)
            if value.numel() and bool((value == value.ravel()[0]).all()):
                return self._value(view, node, float(value.ravel()[0]))
        return None


class RandomSlopes(Pointwise):
    """rrelu: in eval mode one slope for all."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        if arguments(node).get("training"):
            return "it draws its slopes"
        return super().layout(view, node)


class Passing(Pointwise):
    """Operators of one tensor that leave coordinates as they are, whatever else they take."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        return Effect(view.layout(source_of(node)))


class Slopes(Pointwise):
    """prelu: one slope for all channels, or one for each, which lie on dimension 1."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        source, slopes = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(slopes, fx.Node)
        axis, name = view.axis(source), view.parameter(slopes)
        if name is None:
            return "its slopes are computed"
        effect = Effect(view.layout(source))
        if view.tensor(slopes).numel() > 1:
            if axis is None or axis.dim != 1:
                return "its input's channels are not tracked"
            effect += Effect(unions=((view.bound(name, 0), axis.ids),))
        return effect

    def constant(self, view: View, node: fx.Node) -> Flags:
        return view.constant(source_of(node))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(source_of(node), used)]


class Filled(Passing):
    """zeros_like and the like: the shape of a tensor, and nothing of its values."""

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.ones_like(view.constant(source_of(node)))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return ()


class Made:
    """zeros, new_zeros, arange and the like: of no other tensor's values, and of no channels until it meets some."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        return Effect()

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return ()


_passing, _pointwise = Passing(), Pointwise()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "dropout",
            "feature_dropout",
            "alpha_dropout",
            "clone",
            "contiguous",
            "detach",
            "lift_fresh_copy",
            "to",
            "alias",
            "type_as",
        ),
        _passing,
    ),
    "prelu": Slopes(),
    **dict.fromkeys(MADE, Made()),
    "rrelu": RandomSlopes(),
    **dict.fromkeys(("where", "masked_fill"), Where()),
    # Of two tensors; with a dimension these are reductions.
    **dict.fromkeys(("max.other", "min.other"), _pointwise),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), Filled()),
    # Pointwise, although ATen does not tag them so.
    **dict.fromkeys(
        (
            "hardswish",
            "hardtanh",
            "relu6",
            "selu",
            "celu",
            "softplus",
            "softshrink",
            "hardshrink",
            "log_sigmoid",
        ),
        _pointwise,
    ),
}
