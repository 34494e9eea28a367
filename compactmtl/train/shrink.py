"""Progressive compaction: dead channels leave the network while it trains, and the optimizer's state with them.

Checkpoints hold the network at its first size, with zeros where channels were removed, so that all that reads them
need not know. On resuming the channels are removed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.balancing import GradientBalancer
from compactmtl.errors import ConfigError, TrainingError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.trace import first_line
from compactmtl.models import MultiTaskModel
from compactmtl.surgery import apply_plan
from compactmtl.surgery.plan import Plan
from compactmtl.surgery.slice_plan import Kept, compose, kept_indices, nothing, plan_slices, put_back
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.sparse import Sparsifier

# Two float32 networks of the same function whose sums run in another order; a wrong slice is off by far more.
SAME = 1e-3


class Shrinker(Part):
    """What was removed from a network so far, and how it was before."""

    name: ClassVar[str] = "shrunk"

    def __init__(
        self, model: nn.Module, inputs: tuple[Tensor, ...], every: int, keep: tuple[str, ...] = ()
    ) -> None:
        """After every `every`th epoch; `keep` names the beginnings of parameters whose channels stay."""
        self.plan = nothing(model)
        self._every = every
        self._keep = keep
        self._inputs = inputs
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    @property
    def kept(self) -> Kept:
        """What is left of each dimension that was cut."""
        return kept_indices(self.plan)

    def end_epoch(self, training: Training) -> None:
        sparsifier = training.part(Sparsifier)
        if sparsifier is not None and training.position.epoch % self._every == 0:
            self.shrink(training, sparsifier)

    def shrink(self, training: Training, sparsifier: Sparsifier) -> None:
        """Go on without the network's dead channels, where any can go.

        Raises TrainingError where the smaller network does not run or has another function; nothing is replaced then.
        """
        model, dead = training.model, sparsifier.dead()
        if not any(flags.any() for flags in dead):
            return
        plan = plan_slices(model, self._inputs, list(sparsifier.groups), dead, self._keep)
        if plan.empty:
            return
        small = _smaller(plan, model)
        _compare(model, small, self._inputs)
        whole = compose(self.plan, plan)
        training.replace_model(small, kept_indices(plan))
        self.plan = whole

    def state_dict(self) -> str:
        """The plan from the network's first size to its size now, as JSON."""
        return self.plan.to_json()

    def load_state_dict(self, training: Training, state: Any) -> None:
        """Remove from the network at its first size what had been removed from it."""
        plan = Plan.from_json(state, "the checkpoint's plan")
        if plan.empty:
            return
        self.plan = plan
        training.replace_model(_smaller(plan, training.model), kept_indices(plan))

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of the network at its first size."""
        kept = self.kept
        return {name: put_back(name, value, self._shapes[name], kept) for name, value in state.items()}

    def optimizer_whole(self, optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
        """The optimizer's state_dict at the network's first size."""
        saved = optimizer.state_dict()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept, state = self.kept, {}
        for index, values in saved["state"].items():
            parameter, name = order[index], names.get(id(order[index]))
            state[index] = {
                key: put_back(name, value, self._shapes[name], kept)
                if name is not None and isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in values.items()
            }
        return {**saved, "state": state}


def _smaller(plan: Plan, model: MultiTaskModel) -> MultiTaskModel:
    small = apply_plan(model, plan)
    assert isinstance(small, MultiTaskModel)
    small.train(model.training)
    if any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in _maps(model)
    ):
        small = small.to(memory_format=torch.channels_last)
    return small


def _compare(model: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with borrowed(model, small, weights=False):
        before = model(*inputs)
        try:
            after = small(*inputs)
        except Exception as failure:  # a forward that counts its channels in a way that no edit follows
            raise TrainingError(
                f"the network does not run without its dead channels: {first_line(failure)}",
                "leave out sparsity.shrink_every: `compact` removes after training what it can prove",
            ) from failure
    for name, expected in before.items():
        if expected.shape != after[name].shape:
            raise TrainingError(
                f"removing dead channels changed the output {name} from {tuple(expected.shape)} to"
                f" {tuple(after[name].shape)}",
                "leave out sparsity.shrink_every: `compact` removes after training what it can prove",
            )
        error = float((expected - after[name]).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= SAME:
            raise TrainingError(
                f"removing dead channels changed the output {name} by {error:.1e} of its largest value",
                "this should not happen: leave out sparsity.shrink_every and report the recipe",
            )


def _maps(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() == 4]


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
    return Shrinker(
        setup.model, setup.inputs, config.shrink_every, setup.model.head_prefixes if features else ()
    )
