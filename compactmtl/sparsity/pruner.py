"""What a baseline that prunes once asks for its choice, and the smallest norms as one."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from compactmtl.graph.space import Flags
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.target import Target


class Pruner(ABC):
    """Chooses the groups to remove, once. Before that it may add to the gradients, or learn from them."""

    learned: list[Tensor] | None = None  # what it has learned, one number a group, (n,) a family

    def regularize(self) -> None:
        """Add to the gradients, from `sparsity.prune.regularize` of all steps on."""

    def observe(self, groups: ChannelGroups) -> None:
        """Learn from the gradients, in the last `sparsity.prune.importance_steps` steps before the choice."""

    @abstractmethod
    def choose(self, target: Target) -> list[Flags]:
        """The groups to remove, a bool array (n,) a family."""


class Magnitude(Pruner):
    """The groups whose filters have the smallest l2 norm, each over the mean of its layer's."""

    def choose(self, target: Target) -> list[Flags]:
        return target.by_magnitude()
