"""Attention: products of two activations, contracted over each head's width."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments
from compactmtl.graph.effect import Effect, Pin, Scaled, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Axis, Flags
from compactmtl.graph.view import View


def _maker(view: View, query: fx.Node) -> fx.Node | None:
    """The layer whose rows are the queries, where they are only rearranged on the way and read once."""
    node = query
    while view.product(node) is None:
        moved = view.moved(node)
        if moved is None:
            return None
        node = moved.source
    weight = arguments(node).get("weight")
    alone = weight is not None and view.parameter(weight) is not None and len(weight.users) == 1
    return node if alone else None


class ScaledDotProduct:
    """softmax(q kᵀ · scale) v with q, k (..., L, E) and v (..., S, Ev).

    A coordinate of q goes with the same one of k. The default scale follows E, so E must be kept or the
    scale be made up for (see surgery). A constant v passes, for the weights sum to 1.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        axes = [view.axis(given[key]) for key in ("query", "key", "value")]
        rank = len(view.shape(given["query"]))
        if any(axis is None or axis.dims[-1] != rank - 1 for axis in axes):
            return "its heads are not tracked"
        query, key, value = axes
        assert query is not None and key is not None and value is not None
        if query.dims != key.dims or query.ids.shape != key.ids.shape or given.get("enable_gqa"):
            return "its queries and keys do not match head by head"
        effect = Effect((value,), unions=((query.ids, key.ids),))
        if given["attn_mask"] is not None:
            effect += Effect(pins=view.pins(given["attn_mask"]))
        if self._by_head(query, value):
            heads = [own.ids.reshape(len(own.ids), -1) for own in (query, key, value)]
            effect += Effect(units=(np.concatenate(heads, axis=1),))
        if given["scale"] is None:
            maker = _maker(view, given["query"])
            if maker is None:
                effect += Effect(pins=(Pin(query.ids),))
            else:
                effect += Effect(scaled=Scaled(maker, query.ids))
        return effect

    def constant(self, view: View, node: fx.Node) -> Flags:
        return view.constant(arguments(node)["value"])

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        query, key = given["query"], given["key"]
        yield Use(given["value"], used)
        if given["attn_mask"] is not None:
            yield Use(given["attn_mask"])
        axes = view.axis(query), view.axis(given["value"])
        matters: Flags = np.ones(1, dtype=bool)
        if axes[0] is not None and axes[1] is not None and self._by_head(axes[0], axes[1]):
            # Whatever a head attends to, constant values give the same.
            live = used & ~view.constant(given["value"])
            matters = np.asarray(live.any(axis=1, keepdims=True))
        yield Use(query, ~view.zero(key) & matters, exact=True)
        yield Use(key, ~view.zero(query) & matters, exact=True)

    @staticmethod
    def _by_head(query: Axis, value: Axis) -> bool:
        """Whether both have their heads in the same dimension, so that one can go whole."""
        return query.ids.ndim == value.ids.ndim == 2 and query.dims[0] == value.dims[0]


RULES: dict[str, Rule] = {"scaled_dot_product_attention": ScaledDotProduct()}
