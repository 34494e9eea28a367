"""Progressive compaction in a recipe: dead channels leave the network at the end of an epoch.

Checkpoints hold the network at its first size, with zeros where channels were removed, so that all that reads them
need not know. On resuming the channels are removed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from compactmtl.balancing import GradientBalancer
from compactmtl.errors import ConfigError
from compactmtl.loops.removed import Removed
from compactmtl.models import MultiTaskModel
from compactmtl.surgery.plan import Plan
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.sparse import Sparsifier


class Shrinker(Part):
    """What was removed from a network so far, and how it was before."""

    name: ClassVar[str] = "shrunk"

    def __init__(self, removed: Removed, every: int) -> None:
        """After every `every`th epoch."""
        self.removed = removed
        self._every = every

    def end_epoch(self, training: Training) -> None:
        sparsifier = training.part(Sparsifier)
        if sparsifier is not None and training.position.epoch % self._every == 0:
            self.shrink(training, sparsifier)

    def shrink(self, training: Training, sparsifier: Sparsifier) -> None:
        """Go on without the network's dead channels, where any can go.

        Raises TrainingError where the smaller network does not run or has another function; nothing is replaced then.
        """
        plan = self.removed.find(training.model, sparsifier.groups, sparsifier.removable())
        if plan is not None:
            training.rebind(self.removed.remove(training.model, plan, training.optimizer))

    def state_dict(self) -> str:
        """The plan from the network's first size to its size now, as JSON."""
        return self.removed.plan.to_json()

    def load_state_dict(self, training: Training, state: Any) -> None:
        """Remove from the network at its first size what had been removed from it."""
        plan = Plan.from_json(state, "the checkpoint's plan")
        if not plan.empty:
            training.rebind(self.removed.again(training.model, plan, training.optimizer))

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of the network at its first size."""
        return self.removed.whole(state)

    def optimizer_whole(self, optimizer: Optimizer, model: MultiTaskModel) -> dict[str, Any]:
        """The optimizer's state_dict at the network's first size."""
        return self.removed.optimizer_whole(optimizer.state_dict(), optimizer, model)


def build_shrinker(setup: Setup) -> Shrinker | None:
    """The recipe's progressive compaction, or None where it asks for none.

    Channels that the heads read stay where something else reads the features too. Raises ConfigError for a balancer
    that compares gradients of parameters, whose number would change.
    """
    recipe, balancer = setup.recipe, setup.balancer
    config = recipe.sparsity
    if config is None or config.shrink_every is None:
        return None
    by_gradient = isinstance(balancer, GradientBalancer)
    if by_gradient and balancer.at == "shared_parameters":
        raise ConfigError(
            f"sparsity.shrink_every: {recipe.balancing.name} remembers gradients of parameters that would go",
            "add balancing.at=features, or leave out sparsity.shrink_every",
        )
    features = by_gradient or recipe.regularization != type(recipe.regularization)()
    removed = Removed(setup.model, setup.inputs, setup.model.head_prefixes if features else ())
    return Shrinker(removed, config.shrink_every)
