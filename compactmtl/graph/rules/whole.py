"""Modules that a trace took whole: barriers that say why."""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.effect import Effect, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.space import Flags
from compactmtl.graph.view import View
from compactmtl.graph.whole import OPERATOR, held


class TakenWhole:
    """What enters such a module stays, and so does all that it holds."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        module = held(int(node.args[0]))  # type: ignore[arg-type]
        return f"{module.path} is traced whole, because {module.reason}"

    def constant(self, view: View, node: fx.Node) -> Flags:
        return np.zeros(0, dtype=bool)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        return [Use(source) for source in view.tensors_in(node)]


RULES: dict[str, Rule] = {OPERATOR: TakenWhole()}
