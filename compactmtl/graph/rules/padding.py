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

    Channels that it adds are constants, as many as the forward says: they stay.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        axis = view.axis(source_of(node))
        if axis is None:
            return self.untracked(view, node)
        added = [self._added(view, node)[dim] for dim in axis.dims]
        if not any(any(sizes) for sizes in added):
            return Effect((axis,))
        if axis.dim is None or self._mode(node) != "constant" or min(added[0]) < 0:
            return "it pads the channel"
        before, after = (view.fresh(size) for size in added[0])
        padded = Axis(axis.dims, np.concatenate([before, axis.ids, after]))
        pin = Pin(np.concatenate([before, after]), "it adds a fixed number of channels")
        return Effect((padded,), pins=(pin,))

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
        return np.pad(flags, added[axis.dims[0]], constant_values=True) if axis.dim is not None else flags

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        axis = view.axis(source_of(node))
        if axis is not None and axis.dim is not None and view.axis(node) is not None:
            before, _ = self._added(view, node)[axis.dim]
            used = used[before : before + len(axis.ids)]
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
