"""Pointwise operators: one coordinate in, the same coordinate out; several inputs go together."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule, operator
from compactmtl.graph.space import Axis, Flags


def _aligned(analysis: Analysis, node: fx.Node, source: fx.Node, dim: int) -> int | None:
    """The dimension of `source` that broadcasts onto the node's `dim`, where it is full size there."""
    own = dim - (len(analysis.shape(node)) - len(analysis.shape(source)))
    if own < 0 or analysis.shape(source)[own] != analysis.shape(node)[dim]:
        return None
    return own


class Pointwise:
    """Any operator that ATen tags pointwise, with broadcasting."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        sources = analysis.tensors_in(node)
        rank = len(analysis.shape(node))
        merged: dict[int, Axis] = {}
        for source in sources:
            offset = rank - len(analysis.shape(source))
            for axis in analysis.layouts.get(source, ()):
                dim = axis.dim + offset
                if len(axis.ids) != analysis.shape(node)[dim]:
                    analysis.space.pin(axis.ids)  # one value broadcast over a whole dimension
                elif dim in merged:
                    analysis.space.union(merged[dim].ids, axis.ids)
                else:
                    merged[dim] = Axis(dim, axis.ids)
        for dim in merged:
            for source in sources:
                own = _aligned(analysis, node, source, dim)
                tracked = any(axis.dim == own for axis in analysis.layouts.get(source, ()))
                if own is not None and not tracked and analysis.shape(node)[dim] > 1:
                    analysis.space.pin(merged[dim].ids)
        # A parameter of several dimensions, such as a position embedding, only restricts its own others.
        main = self._main(analysis, sources, rank)
        if main is not None and len(merged) > 1 and main in merged:
            for dim, axis in merged.items():
                if dim != main:
                    analysis.space.pin(axis.ids)
            merged = {main: merged[main]}
        analysis.layouts[node] = tuple(merged[dim] for dim in sorted(merged))
        return None

    @staticmethod
    def _main(analysis: Analysis, sources: list[fx.Node], rank: int) -> int | None:
        """The dimension of the activations' own axis, as counted in the output."""
        dims = {
            axis.dim + rank - len(analysis.shape(source))
            for source in sources
            if analysis.parameter(source) is None and (axis := analysis.axis(source)) is not None
        }
        return dims.pop() if len(dims) == 1 else None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        axis = analysis.axis(node)
        assert axis is not None
        flags = np.ones(len(axis.ids), dtype=bool)
        zero = np.zeros(len(axis.ids), dtype=bool)
        for source in analysis.tensors_in(node):
            if self._reads_axis(analysis, node, source, axis):
                flags &= analysis.constant(source)
                zero |= analysis.zero(source)
            elif analysis.parameter(source) is None or analysis.tensor(source).numel() > 1:
                flags[:] = False  # another tensor's value is mixed into every coordinate
        return flags | zero if operator(node) == "mul" else flags

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        axis = analysis.axis(node)
        sources = analysis.tensors_in(node)
        for source in sources:
            if axis is None or not self._reads_axis(analysis, node, source, axis):
                own = analysis.axis(source)
                if own is not None:
                    analysis.use(source, np.ones(len(own.ids), dtype=bool))
                continue
            flags = used
            if operator(node) == "mul":
                others = [o for o in sources if o is not source and self._reads_axis(analysis, node, o, axis)]
                for other in others:
                    flags = flags & ~analysis.zero(other)
            analysis.use(source, flags)

    @staticmethod
    def _reads_axis(analysis: Analysis, node: fx.Node, source: fx.Node, axis: Axis) -> bool:
        own = analysis.axis(source)
        if own is None or len(own.ids) != len(axis.ids):
            return False
        return own.dim + len(analysis.shape(node)) - len(analysis.shape(source)) == axis.dim


class Passing(Pointwise):
    """Operators of one tensor that leave coordinates as they are, whatever else they take."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        analysis.layouts[node] = analysis.layouts.get(source, ())
        return None


_passing, _pointwise = Passing(), Pointwise()
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "to", "alias"),
        _passing,
    ),
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
