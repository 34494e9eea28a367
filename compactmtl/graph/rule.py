"""What an operator rule is. Rules answer questions about one call; they change nothing.

Three passes over the calls ask them: `layout` (which coordinates lie where, what goes together), `constant` (forward:
which coordinates hold one value whatever the input) and `used` (backward: which coordinates some output depends on).
An operator without a rule is a barrier: what enters it stays and is used.
"""

from __future__ import annotations

from typing import Protocol

from torch import fx

from compactmtl.graph.effect import Effect, Uses
from compactmtl.graph.space import Flags
from compactmtl.graph.view import View


class Rule(Protocol):
    """One family of operators."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        """What the call does to channels, or the reason why they cannot be followed: then it is a barrier."""
        ...

    def constant(self, view: View, node: fx.Node) -> Flags:
        """Which entries of the result's axis hold one value whatever the input."""
        ...

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        """Which entries of what the call reads are needed, where those of its result are that `used` flags."""
        ...
