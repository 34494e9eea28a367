"""Operators without a rule: what is found by running them on changed operands (see `compactmtl.graph.probe`).

Such an operator passes the channels that it keeps apart, such as those of an index over positions. Of its constants only
zeros pass, where it makes zeros of them.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import operator
from compactmtl.graph.effect import ALL, Effect, Followed, Key, Learned, Pin, Use, Uses
from compactmtl.graph.groups import Role
from compactmtl.graph.probe import can_be_probed, learn
from compactmtl.graph.rules.pointwise import own_size
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View

NO_RULE = "no rule for this operator"


class ByBehavior:
    """The rule of every operator that has none."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        if not can_be_probed(node):
            return NO_RULE
        sources = node.all_input_nodes
        axes = [view.layout(source) for source in sources]
        if not any(axes):
            return Effect(learned=Learned())
        values = view.operands(node)
        if values is None:
            return NO_RULE
        learned = learn(node, view.samples, values, axes, [view.is_static(source) for source in sources])
        if learned.reason:
            return learned.reason
        return self._effect(view, node, learned)

    def _effect(self, view: View, node: fx.Node, learned: Learned) -> Effect | str:
        sources = node.all_input_nodes
        effect = Effect(learned=learned)
        placed: list[tuple[Followed, Axis]] = []
        for own in learned.followed:
            axis, said = _placed(view.layout(sources[own.operand])[own.axis], own)
            placed.append((own, axis))
            effect += said
        taken = {(own.operand, own.axis) for own in learned.followed}
        for operand, source in enumerate(sources):
            for place, axis in enumerate(view.layout(source)):
                if (operand, place) not in taken:
                    effect += Effect(
                        pins=(Pin(axis.ids, "it mixes the channels, or moves them to other places"),)
                    )
        if view.is_computed(node):
            return effect + _merged([axis for _, axis in placed])
        leading = [axis for own, axis in placed if not view.is_static(sources[own.operand])]
        main = max(leading or [axis for _, axis in placed], key=lambda axis: len(axis.dims))
        for own, axis in placed:
            effect += self._beside_main(view, sources[own.operand], main, axis, bool(leading))
        for operand, dim, result_dim in learned.beside:
            effect += self._untracked(view, sources[operand], dim, result_dim, main)
        return effect + Effect((main,))

    @staticmethod
    def _beside_main(view: View, source: fx.Node, main: Axis, axis: Axis, leading: bool) -> Effect:
        """What goes together with the axis of the result."""
        roles: tuple[tuple[Key, Role], ...] = ()
        if view.is_static(source):
            role: Role = "affine" if leading else "producer"
            roles = tuple((key, role) for key in view.keys_in(source, axis.ids))
        if axis is main:
            return Effect(roles=roles)
        if not set(axis.dims) <= set(main.dims):
            return Effect(pins=(Pin(axis.ids, "it lays its channels across others"),))
        shape = [axis.ids.shape[axis.dims.index(dim)] if dim in axis.dims else 1 for dim in main.dims]
        if any(size not in (1, own) for size, own in zip(shape, main.ids.shape, strict=True)):
            return Effect(
                pins=(Pin(axis.ids, "it repeats the channel"), Pin(main.ids, "it repeats the channel"))
            )
        return Effect(unions=((main.ids, axis.ids.reshape(shape)),), roles=roles)

    @staticmethod
    def _untracked(view: View, source: fx.Node, dim: int, result_dim: int, main: Axis) -> Effect:
        """An operand that holds an entry for each channel, of which nothing says where they come from."""
        if result_dim not in main.dims:
            return Effect()
        if main.dims == (result_dim,) and view.adoptable(source, (dim,), main.ids):
            return Effect(adopted=((source, Axis((dim,), main.ids)),))
        if operator(source) in ("expand", "expand_as") and own_size(view, source, dim) == 1:
            return Effect(sized=((source, main.ids),))  # one entry, as many times as there are channels
        return Effect(pins=(Pin(main.ids, "another tensor has an entry for each channel"),))

    # -- constants and uses ------------------------------------------------------------------------

    def constant(self, view: View, node: fx.Node) -> Flags:
        learned, axis = view.learned(node), view.axis(node)
        assert learned is not None and axis is not None
        if learned.pointwise:
            return view.constant(node.all_input_nodes[0])
        flags = np.zeros(axis.ids.shape, dtype=bool)
        zeros = [(own, self._zero_in_result(view, node, own)) for own in _followed(view, node)]
        for own, zero in zeros:
            if own.operand in learned.silencing:
                flags |= zero
        if learned.zero and zeros:
            flags |= np.logical_and.reduce([np.broadcast_to(zero, flags.shape) for _, zero in zeros])
        return flags

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        learned, axis = view.learned(node), view.axis(node)
        own_of = {own.operand: own for own in _followed(view, node)}
        for operand, source in enumerate(node.all_input_nodes):
            own = own_of.get(operand)
            if axis is None or learned is None or own is None or view.axis(source) is None:
                yield Use(source, ALL, exact=True)
                continue
            flags = used
            for other in own_of.values():
                if other is not own and other.operand in learned.silencing:
                    flags = flags & ~self._zero_in_result(view, node, other)
            yield Use(source, _backward(flags, axis, view.axis(source), own), exact=not learned.pointwise)

    @staticmethod
    def _zero_in_result(view: View, node: fx.Node, own: Followed) -> Flags:
        """Entries of the result's axis that stand for zeros of an operand, broadcast where it lacks a dimension."""
        axis, source = view.axis(node), node.all_input_nodes[own.operand]
        assert axis is not None
        placed = view.layout(source)[own.axis]
        if view.axis(source) is not None:
            zero = view.zero(source)
        else:
            flags, values = view.uniform(source, placed)
            zero = flags & (values == 0)
        gone = tuple(k for k, one in enumerate(own.kept) if one.dim is None)
        zero = np.asarray(zero.all(axis=gone) if gone else zero)
        left = [one for one in own.kept if one.dim is not None]
        if len(left) == 1:
            one = left[0]
            zero = np.asarray(zero.reshape(-1, one.joined).all(1))
            zero = np.tile(zero, one.repeat) if one.tiled else np.repeat(zero, one.repeat)
        dims = [one.dim for one in left]
        order = sorted(range(len(left)), key=lambda k: dims[k] or 0)
        shape = [zero.shape[dims.index(dim)] if dim in dims else 1 for dim in axis.dims]
        return np.asarray(zero.transpose(order)).reshape(shape)


def _followed(view: View, node: fx.Node) -> list[Followed]:
    """The operands' axes that lie on the result's axis."""
    learned, axis = view.learned(node), view.axis(node)
    if learned is None or axis is None:
        return []
    return [
        own
        for own in learned.followed
        if {one.dim for one in own.kept if one.dim is not None} <= set(axis.dims)
    ]


def _placed(axis: Axis, own: Followed) -> tuple[Axis, Effect]:
    """Where an operand's axis lies in the result, and what goes together for it."""
    if len(own.kept) == 1:
        (one,) = own.kept
        assert one.dim is not None
        rows = axis.ids.reshape(-1, one.joined)
        effect = Effect(unions=((rows, rows[:, :1]),)) if one.joined > 1 else Effect()
        ids = rows[:, 0]
        ids = np.tile(ids, one.repeat) if one.tiled else np.repeat(ids, one.repeat)
        return Axis((one.dim,), np.ascontiguousarray(ids)), effect
    gone = [k for k, one in enumerate(own.kept) if one.dim is None]
    effect = Effect()
    ids = axis.ids
    if gone:
        first = ids[tuple(slice(0, 1) if k in gone else slice(None) for k in range(ids.ndim))]
        effect += Effect(unions=((ids, first),))
        ids = first.reshape([size for k, size in enumerate(ids.shape) if k not in gone])
    dims = [one.dim for one in own.kept if one.dim is not None]
    order = sorted(range(len(dims)), key=lambda k: dims[k])
    if order != list(range(len(dims))):
        # Walked in another order from here on, each row has to keep the same columns.
        effect += Effect(grids=(Grid(ids.reshape(-1, ids.shape[-1]), product=True),))
    return Axis(tuple(sorted(dims)), np.ascontiguousarray(ids.transpose(order))), effect


def _merged(axes: list[Axis]) -> Effect:
    """All axes of a static result, those on the same dimensions as one."""
    merged: dict[tuple[int, ...], Axis] = {}
    unions = []
    for axis in axes:
        first = merged.setdefault(axis.dims, axis)
        if first.ids.shape != axis.ids.shape:
            return Effect(pins=(Pin(first.ids), Pin(axis.ids)))
        unions.append((first.ids, axis.ids))
    return Effect(tuple(merged.values()), unions=tuple(unions))


def _backward(flags: Flags, axis: Axis, source: Axis | None, own: Followed) -> Flags:
    """Entries of an operand's axis that the flagged ones of the result's depend on."""
    assert source is not None
    dims = [one.dim for one in own.kept if one.dim is not None]
    others = tuple(k for k, dim in enumerate(axis.dims) if dim not in dims)
    kept = np.asarray(flags.any(axis=others)) if others else flags
    if len(own.kept) == 1:
        (one,) = own.kept
        shape: Ids = np.array([one.repeat, -1] if one.tiled else [-1, one.repeat])
        each = kept.reshape(shape).any(0 if one.tiled else 1)
        return np.repeat(each, one.joined)
    order = sorted(range(len(dims)), key=lambda k: dims[k])
    kept = kept.transpose(np.argsort(order))
    gone = tuple(k for k, one in enumerate(own.kept) if one.dim is None)
    return np.broadcast_to(np.expand_dims(kept, gone) if gone else kept, source.ids.shape)
