"""Attention: products of two activations, contracted over each head's width."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule, arguments
from compactmtl.graph.space import Axis, Flags


def _maker(analysis: Analysis, query: fx.Node) -> fx.Node | None:
    """The layer whose rows are the queries, where they are only rearranged on the way and read once."""
    node = query
    while node not in analysis.products:
        if node not in analysis.positions:
            return None
        node = analysis.rules[node].input(node)  # type: ignore[attr-defined]
    weight = arguments(node)["weight"]
    return node if analysis.parameter(weight) is not None and len(weight.users) == 1 else None


class ScaledDotProduct:
    """softmax(q kᵀ · scale) v with q, k (..., L, E) and v (..., S, Ev).

    A coordinate of q goes with the same one of k. The default scale follows E, so E must be kept or the
    scale be made up for (see surgery). A constant v passes, for the weights sum to 1.
    """

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        given = arguments(node)
        axes = [analysis.axis(given[key]) for key in ("query", "key", "value")]
        rank = len(analysis.shape(given["query"]))
        if any(axis is None or axis.dims[-1] != rank - 1 for axis in axes):
            return "its heads are not tracked"
        query, key, value = axes
        assert query is not None and key is not None and value is not None
        if query.dims != key.dims or query.ids.shape != key.ids.shape or given.get("enable_gqa"):
            return "its queries and keys do not match head by head"
        if given["attn_mask"] is not None:
            analysis.pin(given["attn_mask"])
        analysis.space.union(query.ids, key.ids)
        if self._by_head(query, value):
            analysis.space.slab(query.ids, key.ids, value.ids)
        if given["scale"] is None:
            maker = _maker(analysis, given["query"])
            if maker is None:
                analysis.space.pin(query.ids)
            else:
                analysis.scaled[node] = (maker, query.ids)
        analysis.layouts[node] = (value,)
        return None

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.constant(arguments(node)["value"])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        given = arguments(node)
        query, key = given["query"], given["key"]
        analysis.use(given["value"], used)
        if given["attn_mask"] is not None:
            analysis.use_all(given["attn_mask"])
        axes = analysis.axis(query), analysis.axis(given["value"])
        matters: Flags = np.ones(1, dtype=bool)
        if axes[0] is not None and axes[1] is not None and self._by_head(axes[0], axes[1]):
            # Whatever a head attends to, constant values give the same.
            live = used & ~analysis.constant(given["value"])
            matters = np.asarray(live.any(axis=1, keepdims=True))
        analysis.use_exactly(query, ~analysis.zero(key) & matters)
        analysis.use_exactly(key, ~analysis.zero(query) & matters)

    @staticmethod
    def _by_head(query: Axis, value: Axis) -> bool:
        """Whether both have their heads in the same dimension, so that one can go whole."""
        return query.ids.ndim == value.ids.ndim == 2 and query.dims[0] == value.dims[0]


class MatMul:
    """a @ b of two activations: the contracted coordinates go together, the others pass."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        left, right = self._operands(node)
        a, b = analysis.axis(left), analysis.axis(right)
        rank = len(analysis.shape(node))
        if len(analysis.shape(left)) != rank or len(analysis.shape(right)) != rank:
            return "its operands differ in rank"
        contracted_left = a is not None and rank - 1 in a.dims
        contracted_right = b is not None and rank - 2 in b.dims
        if contracted_left != contracted_right:
            return "only one of its operands' contracted dimensions is tracked"
        batch = set(range(rank - 2))
        if contracted_left:
            assert a is not None and b is not None
            if set(a.dims) - {rank - 1} != set(b.dims) - {rank - 2} or not set(a.dims) - {rank - 1} <= batch:
                return "its operands' heads do not match"
            if a.ids.shape != b.ids.shape:
                return "its operands' heads do not match"
            analysis.space.union(a.ids, b.ids)
            analysis.layouts[node] = ()
            return None
        passing, mixing = self._passing(analysis, node)
        main, other = analysis.axis(passing), analysis.axis(mixing)
        if main is None:
            analysis.layouts[node] = ()
            return None
        if other is not None:
            shared = [main.dims.index(dim) for dim in other.dims if dim in main.dims and dim in batch]
            shape = [main.ids.shape[i] if i in shared else 1 for i in range(main.ids.ndim)]
            if len(shared) != len(other.dims) or other.ids.shape != tuple(main.ids.shape[i] for i in shared):
                return "its operands' heads do not match"
            analysis.space.union(main.ids, other.ids.reshape(shape))
        else:
            for dim in main.dims:
                if dim in batch and analysis.shape(mixing)[dim] > 1:
                    # The mixing operand has one matrix for each of these: they all stay.
                    self._pin_rows(analysis, main, dim)
        analysis.layouts[node] = (main,)
        return None

    def _passing(self, analysis: Analysis, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The operand whose coordinates pass, rows of the left or columns of the right, and the one that mixes."""
        left, right = self._operands(node)
        a, b = analysis.axis(left), analysis.axis(right)
        rank = len(analysis.shape(node))
        if a is not None and (b is None or (rank - 2 in a.dims and rank - 1 not in b.dims)):
            return left, right
        return right, left

    @staticmethod
    def _pin_rows(analysis: Analysis, axis: Axis, dim: int) -> None:
        """Every entry of a dimension keeps as much as the others: none of it goes as a whole."""
        moved = np.moveaxis(axis.ids, axis.dims.index(dim), 0)
        analysis.space.grid(moved.reshape(moved.shape[0], -1))

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.zero(self._passing(analysis, node)[0])

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        left, right = self._operands(node)
        axis = analysis.axis(node)
        a, b = analysis.axis(left), analysis.axis(right)
        if axis is None and a is not None and b is not None and a.ids.shape == b.ids.shape:
            analysis.use_exactly(left, ~analysis.zero(right))
            analysis.use_exactly(right, ~analysis.zero(left))
            return
        passing, mixing = self._passing(analysis, node)
        analysis.use_all(mixing)
        if axis is None:
            analysis.use_all(passing)
        else:
            analysis.use_exactly(passing, used)

    @staticmethod
    def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
        left, right = node.args[0], node.args[1]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        return left, right


_matmul = MatMul()
RULES: dict[str, Rule] = {
    "scaled_dot_product_attention": ScaledDotProduct(),
    "matmul": _matmul,
    "bmm": _matmul,
}
