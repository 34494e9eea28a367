"""Attention: products of two activations, contracted over each head's width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.calls import arguments
from compactmtl.graph.effect import ALL, Effect, Pin, Scaled, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.crossed import all_of_head, any_of_head, by_head, of_heads
from compactmtl.graph.rules.scales import maker_of
from compactmtl.graph.space import Axis, Flags, Ids
from compactmtl.graph.view import View


@dataclass(frozen=True)
class _Shared:
    """How heads of queries share those of keys or values: `times` of them read one; without heads of their own all do."""

    times: int
    headless: bool

    def spread(self, entries: NDArray[Any]) -> NDArray[Any]:
        """Entries of keys or values, one for each head of the queries."""
        entries = entries[None] if self.headless else entries
        return entries if self.times == 1 else np.repeat(entries, self.times, axis=0)

    def read(self, used: Flags) -> Flags:
        """Which entries of keys or values some head of the queries reads."""
        rows = np.asarray(used.reshape(-1, self.times, *used.shape[1:]).any(1)) if self.times > 1 else used
        return np.asarray(rows[0] if self.headless else rows)


def _shared(query: Axis, other: Axis) -> _Shared:
    if query.ids.ndim < 2:
        return _Shared(1, False)
    headless = other.ids.ndim == query.ids.ndim - 1
    return _Shared(max(len(query.ids) // (1 if headless else len(other.ids)), 1), headless)


class ScaledDotProduct:
    """softmax(q kᵀ · scale) v with q, k (..., L, E) and v (..., S, Ev).

    A coordinate of q goes with the same one of k. The default scale follows E, so E must be kept or the
    scale be made up for (see surgery). A constant v passes, for the weights sum to 1. Where several heads of queries
    read one of keys and values, they go together.
    """

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        given = arguments(node)
        axes = [view.axis(given[key]) for key in ("query", "key", "value")]
        rank = len(view.shape(given["query"]))
        if (over := OverChannels.of(view, node)) is not None:
            return over.layout(view, given)
        if any(axis is None or axis.dims[-1] != rank - 1 for axis in axes):
            return "its heads are not tracked"
        query, key, value = axes
        assert query is not None and key is not None and value is not None
        keys, values = _shared(query, key), _shared(query, value)
        if keys.headless != (query.dims != key.dims) or query.ids.shape != keys.spread(key.ids).shape:
            return "its queries and keys do not match head by head"
        dims = query.dims if values.headless else value.dims
        result = Axis(dims, values.spread(value.ids))
        effect = Effect((result,), unions=((query.ids, keys.spread(key.ids)),))
        mask = given["attn_mask"]
        if self._by_head(query, key, value):
            heads = [own.ids.reshape(len(key.ids), -1) for own in (query, key, value)]
            biases = None if mask is None else self._biases(view, mask, query, rank)
            if biases is not None:
                heads.append(biases.reshape(len(key.ids), -1))
                others = (axis.ids for axis in view.layout(mask) if axis.ids is not biases)
                effect += Effect(pins=tuple(map(Pin, others)))
                mask = None
            unit = np.concatenate(heads, axis=1)
            effect += Effect(units=(unit,))
            if biases is not None:
                effect += Effect(followers=((biases, keys.spread(unit)),))
        if mask is not None:
            effect += Effect(pins=view.pins(mask))
        if given["scale"] is None:
            maker = maker_of(view, given["query"])
            if maker is None:
                effect += Effect(pins=(Pin(query.ids),))
            else:
                effect += Effect(scaled=Scaled(maker, query.ids))
        return effect

    @staticmethod
    def _biases(view: View, mask: fx.Node, query: Axis, rank: int) -> Ids | None:
        """The ids of a mask's heads (H,), where it has a bias for each; None where they are not followed.

        A static mask may have entries for windows and positions as well, as Swin's of shifted windows.
        """
        axes = view.layout(mask)
        if len(axes) > 1 and not view.is_static(mask):
            return None
        where = query.dims[0] - rank + len(view.shape(mask))
        own = [axis.ids for axis in axes if axis.dims == (where,) and axis.ids.shape == query.ids.shape[:1]]
        return own[0] if len(own) == 1 else None

    @staticmethod
    def _sharing(view: View, node: fx.Node) -> tuple[_Shared, _Shared]:
        """How keys, and how values are shared."""
        given = arguments(node)
        query, key, value = (view.axis(given[name]) for name in ("query", "key", "value"))
        assert query is not None and key is not None and value is not None
        return _shared(query, key), _shared(query, value)

    def constant(self, view: View, node: fx.Node) -> Flags:
        if (over := OverChannels.of(view, node)) is not None:
            return over.constant(view, arguments(node))
        return np.asarray(self._sharing(view, node)[1].spread(view.constant(arguments(node)["value"])))

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        given = arguments(node)
        query, key, mask = given["query"], given["key"], given["attn_mask"]
        if (over := OverChannels.of(view, node)) is not None:
            yield from over.used(view, given, used)
            return
        keys, values = self._sharing(view, node)
        yield Use(given["value"], values.read(used))
        axes = view.axis(query), view.axis(key), view.axis(given["value"])
        matters: Flags = np.ones(1, dtype=bool)
        by_head = all(axis is not None for axis in axes) and self._by_head(*axes)  # type: ignore[arg-type]
        if by_head:
            # Whatever a head attends to, constant values give the same.
            live = used & ~values.spread(view.constant(given["value"]))
            matters = np.asarray(live.any(axis=1, keepdims=True))
        if mask is not None:
            biases = view.axis(mask)
            followed = by_head and biases is not None and biases.ids.shape == matters.shape[:1]
            yield Use(mask, matters[:, 0] if followed else ALL)
        yield Use(query, ~keys.spread(view.zero(key)) & matters, exact=True)
        yield Use(key, keys.read(~view.zero(query) & matters), exact=True)

    @staticmethod
    def _by_head(query: Axis, key: Axis, value: Axis) -> bool:
        """Whether all have their heads in the same dimension, so that one can go whole."""
        return query.ids.ndim == key.ids.ndim == value.ids.ndim == 2 and query.dims[0] == value.dims[0]


@dataclass(frozen=True, eq=False)
class OverChannels:
    """The same call over channels: q, k and v (..., H, C, L), whose weights say how much of each channel goes into another.

    A coordinate of q goes with that of the result, one of k with that of v. A zero among them is compared like any other
    value, so that they go by whole heads.
    """

    query: Axis
    key: Axis
    value: Axis

    @staticmethod
    def of(view: View, node: fx.Node) -> OverChannels | None:
        """The call's axes, where all lie on the dimension before the last, in the same heads."""
        given = arguments(node)
        last = len(view.shape(given["query"])) - 2
        query, key, value = (view.axis(given[name]) for name in ("query", "key", "value"))
        if query is None or key is None or value is None:
            return None
        if any(axis.dims != query.dims or axis.dims[-1] != last for axis in (key, value)):
            return None
        shapes = {axis.ids.shape[:-1] for axis in (query, key, value)}
        return OverChannels(query, key, value) if len(shapes) == 1 and query.ids.ndim <= 2 else None

    def layout(self, view: View, given: dict[str, Any]) -> Effect:
        rows = [by_head(axis.ids) for axis in (self.query, self.key, self.value)]
        effect = Effect(
            (self.query,),
            unions=((self.key.ids, self.value.ids), (rows[1], rows[1][:, :1])),
            unforced=(self.query.ids, self.key.ids),
        )
        if self.query.ids.ndim > 1:
            effect += Effect(units=(np.concatenate(rows, axis=1),))
        if given["attn_mask"] is not None:
            effect += Effect(pins=(*view.pins(given["attn_mask"]), Pin(self.query.ids), Pin(self.key.ids)))
        return effect

    def constant(self, view: View, given: dict[str, Any]) -> Flags:
        return of_heads(all_of_head(view.zero(given["value"])), self.query.ids)

    def used(self, view: View, given: dict[str, Any], used: Flags) -> Uses:
        live = any_of_head(~view.zero(given["value"]))
        columns = of_heads(live & any_of_head(used), self.key.ids)
        yield Use(given["query"], used & of_heads(live, self.query.ids), exact=True)
        yield Use(given["key"], columns, exact=True)
        yield Use(given["value"], columns, exact=True)
        if given["attn_mask"] is not None:
            yield Use(given["attn_mask"])


RULES: dict[str, Rule] = {"scaled_dot_product_attention": ScaledDotProduct()}
