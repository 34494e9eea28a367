"""Operators without a rule of their own: pointwise by their tag, otherwise learned by their behavior."""

from __future__ import annotations

import torch
from torch import fx

from compactmtl.graph.effect import Effect, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.learned import ByBehavior
from compactmtl.graph.rules.pointwise import Pointwise
from compactmtl.graph.space import Flags
from compactmtl.graph.view import View


class Fallback:
    """ATen tags its pointwise operators; all others are tried."""

    _pointwise, _by_behavior = Pointwise(), ByBehavior()

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        return self._rule(node).layout(view, node)

    def constant(self, view: View, node: fx.Node) -> Flags:
        return self._rule(node).constant(view, node)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return self._rule(node).used(view, node, used)

    def _rule(self, node: fx.Node) -> Rule:
        return self._pointwise if _is_pointwise(node) else self._by_behavior


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
