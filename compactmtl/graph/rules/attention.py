"""Attention: products of two activations, contracted over each head's width."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments
from compactmtl.graph.space import Axis, Flags


def _maker(analysis: Analysis, query: fx.Node) -> fx.Node | None:
    """The layer whose rows are the queries, where they are only rearranged on the way and read once."""
    node = query
    while node not in analysis.products:
        if node not in analysis.positions:
            return None
        node = analysis.rules[node].input(node)  # type: ignore[attr-defined]
    weight = arguments(node).get("weight")
    alone = weight is not None and analysis.parameter(weight) is not None and len(weight.users) == 1
    return node if alone else None


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


RULES: dict[str, Rule] = {"scaled_dot_product_attention": ScaledDotProduct()}
