"""Padding of positions and of channels."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments, source_of
from compactmtl.graph.rules.reduce import Spatial
from compactmtl.graph.space import Axis, Flags


class Padding(Spatial):
    """pad: what it adds is another value than a constant channel's, unless both are 0.

    Channels that it adds are constants, as many as the forward says: they stay.
    """

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        axis = analysis.axis(source_of(node))
        if axis is None:
            self.untracked(analysis, node)
            return None
        added = [self._added(analysis, node)[dim] for dim in axis.dims]
        if not any(any(sizes) for sizes in added):
            analysis.layouts[node] = (axis,)
            return None
        if axis.dim is None or self._mode(node) != "constant" or min(added[0]) < 0:
            return "it pads the channel"
        before, after = (analysis.space.fresh(size) for size in added[0])
        analysis.stop(node, np.concatenate([before, after]), "it adds a fixed number of channels")
        analysis.layouts[node] = (Axis(axis.dims, np.concatenate([before, axis.ids, after])),)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        source = source_of(node)
        if self._mode(node) != "constant":
            return analysis.constant(source)
        axis = analysis.axis(source)
        assert axis is not None
        added = self._added(analysis, node)
        value = arguments(node).get("value")
        positions = any(any(sizes) for dim, sizes in enumerate(added) if dim not in axis.dims)
        if not positions:
            flags = analysis.constant(source)
        else:
            flags = np.zeros_like(analysis.constant(source)) if value else analysis.zero(source)
        return np.pad(flags, added[axis.dims[0]], constant_values=True) if axis.dim is not None else flags

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        axis = analysis.axis(source_of(node))
        if axis is not None and axis.dim is not None and analysis.axis(node) is not None:
            before, _ = self._added(analysis, node)[axis.dim]
            used = used[before : before + len(axis.ids)]
        super().used(analysis, node, used)

    @staticmethod
    def _mode(node: fx.Node) -> str:
        return str(arguments(node).get("mode", "constant"))

    @staticmethod
    def _added(analysis: Analysis, node: fx.Node) -> list[tuple[int, int]]:
        """How many entries are put before and behind each dimension."""
        sizes = [int(size) for size in arguments(node)["pad"]]
        rank = len(analysis.shape(source_of(node)))
        pairs = list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
        return [(0, 0)] * (rank - len(pairs)) + pairs


RULES: dict[str, Rule] = dict.fromkeys(("pad", "constant_pad_nd"), Padding())
