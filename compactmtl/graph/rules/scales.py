"""Scales of attention that follow its width: which layer makes the queries, so that its rows can make up for them.

A forward may hold the scale as a number, as timm's `self.scale`, or compute it from a width, as `math.sqrt(self.head_size)`
or `q.shape[-1] ** -0.5`. The traced graph shows a number in both cases. It is taken for computed where the module holds no
such number; where that is wrong the proof fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import fx

from compactmtl.graph.calls import arguments, operator, owner
from compactmtl.graph.effect import Scaled
from compactmtl.graph.rules.labels import labels_of
from compactmtl.graph.space import Axis
from compactmtl.graph.view import View

_POWERS = (0.5, 0.25)  # of the width; the second is of queries and keys each
_LINEAR = frozenset(
    ("add", "sub", "neg", "cat", "stack", "to", "clone", "contiguous", "view_as_complex", "view_as_real")
)
_PRODUCTS = frozenset(("matmul", "bmm", "einsum"))
_REARRANGED = frozenset(
    (
        "view",
        "reshape",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "flatten",
        "unflatten",
        "expand",
        "to",
        "clone",
        "contiguous",
    )
)


def find_scales(view: View, held: Mapping[str, tuple[float, ...]]) -> dict[fx.Node, Scaled]:
    """The calls whose scale is computed from a width that channels may leave, with what makes up for it."""
    found = {}
    for node in view.calls:
        number = _number(node)
        if number is None or any(
            math.isclose(own, value, rel_tol=1e-6)
            for own in held.get(owner(node), ())
            for value in (number, 1 / number)
        ):
            continue
        for query, axis in _queries(view, node):
            width = axis.ids.shape[-1]
            power = next((p for p in _POWERS if math.isclose(number, width**-p, rel_tol=1e-6)), None)
            maker = maker_of(view, query) if power is not None and width > 1 else None
            if maker is not None and power is not None:
                found[node] = Scaled(maker, axis.ids, power, computed=True)
                break
    return found


def _number(node: fx.Node) -> float | None:
    """What a call multiplies queries or scores by, where that is a number of its own."""
    given, name = arguments(node), operator(node)
    if name == "scaled_dot_product_attention":
        number = given["scale"]
    elif name in ("mul", "div") and isinstance(node.args[0], fx.Node):
        number = given.get("other")
    else:
        return None
    if not isinstance(number, (int, float)) or not math.isfinite(number) or number <= 0:
        return None
    return 1 / float(number) if name == "div" else float(number)


def _queries(view: View, node: fx.Node) -> Iterator[tuple[fx.Node, Axis]]:
    """Tensors that the number may be of: queries that it scales, or the two sides of the scores that it scales."""
    if operator(node) == "scaled_dot_product_attention":
        sides = [arguments(node)["query"]]
    else:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        sides = (
            [source] if len(getattr(view.axis(source), "dims", ())) > 1 else []
        )  # heads, and the width of one
        while operator(source) in _REARRANGED and isinstance(source.args[0], fx.Node):
            source = source.args[0]
        labels = labels_of(view, source) if operator(source) in _PRODUCTS else ""
        if not isinstance(labels, str) and len(labels.contracted) == 1:
            (summed,) = labels.contracted
            for side in (labels.left, labels.right):
                axis = view.axis(side)
                if axis is not None and axis.dims[-1] == labels.of(side).index(summed):
                    sides.append(side)
    for side in sides:
        axis = view.axis(side)
        if axis is not None and not view.is_static(side):
            yield side, axis


def maker_of(view: View, query: fx.Node) -> fx.Node | None:
    """The layer whose rows are the queries, where they are only rearranged and turned on the way, and read once.

    What lies between them is linear: rows times a factor are queries times that factor.
    """
    pending, seen, makers = [query], set[fx.Node](), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if view.product(node) is not None:
            makers.add(node)
            continue
        sources = [source for source in view.tensors_in(node) if not view.is_static(source)]
        name = operator(node)
        if name in ("add", "sub") and len(sources) < 2:
            return None  # it adds something that does not grow with them
        turned = name in _LINEAR or (name in ("mul", "div") and len(sources) == 1 and node.args[0] in sources)
        if node.op != "call_function" or not (turned or view.moved(node) is not None):
            return None
        pending += sources
    if len(makers) != 1:
        return None
    (node,) = makers
    weight = arguments(node).get("weight")
    alone = weight is not None and view.parameter(weight) is not None and len(weight.users) == 1
    return node if alone else None
