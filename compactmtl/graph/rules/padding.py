"""Padding of positions and of channels."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments, source_of
from compactmtl.graph.effect import Effect, Pin, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.reduce import Spatial
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.view import View


class Padding(Spatial):
    """pad: what it adds is another value than a constant channel's, unless both are 0.

    Channels that it adds are constants, as many as the forward says: they stay, in rows of channels until the row goes.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        axis = view.axis(source_of(node))
        if axis is None:
            return self.untracked(view, node)
        added = [self._added(view, node)[dim] for dim in axis.dims]
        if not any(any(sizes) for sizes in added):
            return Effect((axis,))
        if any(map(any, added[:-1])) or self._mode(node) != "constant" or min(added[-1]) < 0:
            return "it pads the channel"
        rows = axis.ids.shape[:-1]
        before, after = (view.fresh(size * int(np.prod(rows))).reshape((*rows, size)) for size in added[-1])
        padded = Axis(axis.dims, np.concatenate([before, axis.ids, after], axis=-1))
        fixed = np.concatenate([before, after], axis=-1)
        if len(rows) != 1:
            return Effect((padded,), pins=(Pin(fixed, "it adds a fixed number of channels"),))
        # As many to each row: they stay for as long as anything of the row does.
        each = tuple((column, axis.ids) for column in np.ascontiguousarray(fixed.T))
        return Effect((padded,), units=(np.concatenate([axis.ids, fixed], axis=1),), followers=each)

    def constant(self, view: View, node: fx.Node) -> Flags:
        source = source_of(node)
        if self._mode(node) != "constant":
            return view.constant(source)
        axis = view.axis(source)
        assert axis is not None
        added = self._added(view, node)
        value = arguments(node).get("value")
        positions = any(any(sizes) for dim, sizes in enumerate(added) if dim not in axis.dims)
        if not positions:
            flags = view.constant(source)
        else:
            flags = np.zeros_like(view.constant(source)) if value else view.zero(source)
        rows = [(0, 0)] * (flags.ndim - 1)
        return np.pad(flags, [*rows, added[axis.dims[-1]]], constant_values=True)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        axis = view.axis(source_of(node))
        if axis is not None and view.axis(node) is not None:
            before, _ = self._added(view, node)[axis.dims[-1]]
            used = used[..., before : before + axis.ids.shape[-1]]
        return super().used(view, node, used)

    @staticmethod
    def _mode(node: fx.Node) -> str:
        return str(arguments(node).get("mode", "constant"))

    @staticmethod
    def _added(view: View, node: fx.Node) -> list[tuple[int, int]]:
        """How many entries are put before and behind each dimension."""
        sizes = [int(size) for size in arguments(node)["pad"]]
        rank = len(view.shape(source_of(node)))
        pairs = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
        return [(0, 0)] * (rank - len(pairs)) + pairs


RULES: dict[str, Rule] = dict.fromkeys(("pad", "constant_pad_nd"), Padding())
