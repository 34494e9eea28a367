"""Pointwise operators: one coordinate in, the same coordinate out; several inputs go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import MADE, arguments, operator, source_of
from compactmtl.graph.space import Axis, Flags


def _offset(analysis: Analysis, node: fx.Node, source: fx.Node) -> int:
    """How far right broadcasting moves the dimensions of `source`."""
    return len(analysis.shape(node)) - len(analysis.shape(source))


def _placed(analysis: Analysis, node: fx.Node, source: fx.Node) -> list[Axis]:
    """The axes of `source` where they lie in the output; those broadcast from one entry are pinned."""
    offset = _offset(analysis, node, source)
    placed = []
    for axis in analysis.layouts.get(source, ()):
        dims = tuple(dim + offset for dim in axis.dims)
        if axis.ids.shape == tuple(analysis.shape(node)[dim] for dim in dims):
            placed.append(Axis(dims, axis.ids))
        else:
            analysis.space.pin(axis.ids)
    return placed


def _own_size(analysis: Analysis, node: fx.Node, dim: int) -> int:
    """How many entries a tensor has along a dimension, not counting those that `expand` repeats."""
    size = analysis.shape(node)[dim]
    if operator(node) in ("expand", "expand_as"):
        before = analysis.shape(source_of(node))
        dim -= len(analysis.shape(node)) - len(before)
        size = min(size, before[dim] if dim >= 0 else 1)
    return size


class Pointwise:
    """Any operator that ATen tags pointwise, with broadcasting."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        sources = analysis.tensors_in(node)
        placed = {source: _placed(analysis, node, source) for source in sources}
        if node in analysis.static:
            merged: dict[tuple[int, ...], Axis] = {}
            for axes in placed.values():
                for axis in axes:
                    if axis.dims in merged:
                        analysis.space.union(merged[axis.dims].ids, axis.ids)
                    else:
                        merged[axis.dims] = axis
            analysis.layouts[node] = tuple(merged.values())
            return None
        leading = [axis for source in sources if not analysis.is_static(source) for axis in placed[source]]
        every = [axis for axes in placed.values() for axis in axes]
        main = max(leading or every, key=lambda axis: len(axis.dims), default=None)
        if main is None:
            analysis.layouts[node] = ()
            return None
        for axis in every:
            if set(axis.dims) <= set(main.dims):
                shape = [axis.ids.shape[axis.dims.index(dim)] if dim in axis.dims else 1 for dim in main.dims]
                order = np.argsort(axis.dims)
                analysis.space.union(main.ids, axis.ids.transpose(order).reshape(shape))
            else:
                analysis.space.pin(axis.ids)
        if leading and operator(node) in ("add", "sub"):
            # What is added writes the channel, such as embeddings of positions.
            for source in filter(analysis.is_static, sources):
                for axis in placed[source]:
                    if set(axis.dims) <= set(main.dims):
                        analysis.mark(source, axis.ids, "producer")
        for source in sources:
            if any(set(axis.dims) <= set(main.dims) for axis in placed[source]):
                continue  # entries that differ only in its other dimensions go together by now
            if analysis.adopt(
                source, tuple(d - _offset(analysis, node, source) for d in main.dims), main.ids
            ):
                continue
            known = {dim for axis in placed[source] for dim in axis.dims}
            offset = _offset(analysis, node, source)
            for dim in main.dims:
                full = dim >= offset and _own_size(analysis, source, dim - offset) > 1
                if full and dim not in known:
                    analysis.space.pin(main.ids)
        analysis.layouts[node] = (main,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        axis = analysis.axis(node)
        assert axis is not None
        flags = np.ones(axis.ids.shape, dtype=bool)
        zero = np.zeros(axis.ids.shape, dtype=bool)
        for source in analysis.tensors_in(node):
            shape = self._spread(analysis, node, source, axis)
            if shape is not None:
                flags &= analysis.constant(source).reshape(shape)
                zero |= analysis.zero(source).reshape(shape)
            elif (known := self._over_positions(analysis, node, source, axis)) is not None:
                flags &= known[0]
                zero |= known[0] & (known[1] == 0)
            elif not analysis.is_static(source) or analysis.tensor(source).numel() > 1:
                flags[:] = False  # another tensor's value is mixed into every coordinate
        if operator(node) == "div" and isinstance(node.args[0], fx.Node):
            shape = self._spread(analysis, node, node.args[0], axis)
            return flags if shape is None else flags | analysis.zero(node.args[0]).reshape(shape)
        return flags | zero if operator(node) == "mul" else flags

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        axis = analysis.axis(node)
        sources = analysis.tensors_in(node)
        for source in sources:
            shape = None if axis is None else self._spread(analysis, node, source, axis)
            own = analysis.axis(source)
            if axis is None or shape is None or own is None:
                if own is not None:
                    analysis.use_exactly(source, np.ones(own.ids.shape, dtype=bool))
                continue
            flags = used
            if operator(node) == "mul":
                for other in sources:
                    its = self._spread(analysis, node, other, axis) if other is not source else None
                    if its is not None:
                        flags = flags & ~analysis.zero(other).reshape(its)
            broadcast = tuple(k for k, size in enumerate(shape) if size == 1)
            analysis.use(source, np.asarray(flags.any(axis=broadcast, keepdims=True)).reshape(own.ids.shape))

    @staticmethod
    def _over_positions(
        analysis: Analysis, node: fx.Node, source: fx.Node, axis: Axis
    ) -> tuple[Flags, NDArray[np.float64]] | None:
        """Of a static tensor with entries for positions too, the channels that are uniform over them and their values."""
        offset = _offset(analysis, node, source)
        for own in analysis.layouts.get(source, ()) if analysis.is_static(source) else ():
            moved = tuple(dim + offset for dim in own.dims)
            if moved == axis.dims and own.ids.shape == axis.ids.shape:
                return analysis.uniform(source, own)
        return None

    @staticmethod
    def _spread(analysis: Analysis, node: fx.Node, source: fx.Node, axis: Axis) -> tuple[int, ...] | None:
        """The shape that the entries of `source` have among those of the output's `axis`, 1 where they are broadcast.

        None where they lie elsewhere.
        """
        own = analysis.axis(source)
        if own is None:
            return None
        offset = _offset(analysis, node, source)
        dims = tuple(dim + offset for dim in own.dims)
        if dims != tuple(sorted(dims)) or not set(dims) <= set(axis.dims):
            return None
        shape = tuple(own.ids.shape[dims.index(dim)] if dim in dims else 1 for dim in axis.dims)
        full = all(size == axis.ids.shape[k] for k, size in enumerate(shape) if axis.dims[k] in dims)
        return shape if full and list(axis.dims) == sorted(axis.dims) else None


class Where(Pointwise):
    """where and masked_fill: what is the same constant in both of its choices is one, whatever chooses."""

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        flags = super().constant(analysis, node)
        given = arguments(node)
        chosen = [given["self"], given["value"] if "mask" in given else given["other"]]
        one, other = (self._value(analysis, node, choice) for choice in chosen)
        if one is None or other is None:
            return flags
        same: Flags = flags | (one[0] & other[0] & (one[1] == other[1]))
        return same

    def _value(
        self, analysis: Analysis, node: fx.Node, choice: object
    ) -> tuple[Flags, NDArray[np.float64]] | None:
        """Which entries of the output's axis a choice makes constant, and their values."""
        axis = analysis.axis(node)
        assert axis is not None
        if isinstance(choice, (bool, int, float)):
            return np.ones(axis.ids.shape, dtype=bool), np.full(axis.ids.shape, float(choice))
        if not isinstance(choice, fx.Node):
            return None
        shape = self._spread(analysis, node, choice, axis)
        if shape is not None:
            flags = analysis.constant(choice)
            values = analysis.values[choice] if flags.any() else np.zeros(flags.shape)
            return np.broadcast_to(flags.reshape(shape), axis.ids.shape), values.reshape(shape)
        if (known := self._over_positions(analysis, node, choice, axis)) is not None:
            return known
        if analysis.is_static(choice) and choice not in analysis.traced.hazards:
            value = analysis.tensor(choice)
            if value.numel() and bool((value == value.ravel()[0]).all()):
                return self._value(analysis, node, float(value.ravel()[0]))
        return None


class RandomSlopes(Pointwise):
    """rrelu: in eval mode one slope for all."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        if arguments(node).get("training"):
            return "it draws its slopes"
        return super().layout(analysis, node)


class Passing(Pointwise):
    """Operators of one tensor that leave coordinates as they are, whatever else they take."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        analysis.layouts[node] = analysis.layouts.get(source_of(node), ())
        return None


class Slopes(Pointwise):
    """prelu: one slope for all channels, or one for each, which lie on dimension 1."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source, slopes = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(slopes, fx.Node)
        axis, name = analysis.axis(source), analysis.parameter(slopes)
        if name is None:
            return "its slopes are computed"
        if analysis.tensor(slopes).numel() > 1:
            if axis is None or axis.dim != 1:
                return "its input's channels are not tracked"
            analysis.space.union(analysis.bind(name, 0, None), axis.ids)
        analysis.layouts[node] = analysis.layouts.get(source, ())
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.constant(source_of(node))

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        analysis.use(source_of(node), used)


class Filled(Passing):
    """zeros_like and the like: the shape of a tensor, and nothing of its values."""

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.ones_like(analysis.constant(source_of(node)))

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        return None


class Made:
    """zeros, new_zeros, arange and the like: of no other tensor's values, and of no channels until it meets some."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        analysis.layouts[node] = ()
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        return None


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
