"""Operators without a rule of their own: pointwise by their tag, a barrier otherwise."""

from __future__ import annotations

import torch
from torch import fx

from compactmtl.graph.effect import Effect, Uses
from compactmtl.graph.rules.pointwise import Pointwise
from compactmtl.graph.space import Flags
from compactmtl.graph.view import View


class Fallback:
    """ATen tags its pointwise operators; all others are barriers."""

    _pointwise = Pointwise()

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        if _is_pointwise(node):
            return self._pointwise.layout(view, node)
        return "no rule for this operator"

    def constant(self, view: View, node: fx.Node) -> Flags:
        return self._pointwise.constant(view, node)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return self._pointwise.used(view, node, used)


def _is_pointwise(node: fx.Node) -> bool:
    tags = list(getattr(node.target, "tags", []))
    schema = getattr(node.target, "_schema", None)
    if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return True
    if schema is not None and schema.name.endswith("_"):
        # The in-place form often lacks the tag that its functional twin has.
        packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::").rstrip("_"), None)
        twin = getattr(packet, schema.overload_name or "default", None)
        return twin is not None and torch.Tag.pointwise in twin.tags
    return False
