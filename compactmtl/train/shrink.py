"""Progressive compaction: dead channels leave the network while it trains, and the optimizer's state with them.

Checkpoints hold the network at its first size, with zeros where channels were removed, so that all that reads them
need not know. On resuming the channels are removed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.errors import TrainingError
from compactmtl.graph.trace import evaluating
from compactmtl.models import MultiTaskModel
from compactmtl.surgery import apply_plan
from compactmtl.surgery.plan import Plan
from compactmtl.surgery.slices import Kept, compose, cut, kept_indices, nothing, plan_slices, put_back
from compactmtl.train.sparse import Sparsifier

# Two float32 networks of the same function whose sums run in another order; a wrong slice is off by far more.
SAME = 1e-3


class Shrinker:
    """What was removed from a network so far, and how it was before."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], keep: tuple[str, ...] = ()) -> None:
        """`keep` names the beginnings of parameters whose channels stay."""
        self.plan = nothing(model)
        self._keep = keep
        self._inputs = inputs
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}

    @property
    def kept(self) -> Kept:
        """What is left of each dimension that was cut."""
        return kept_indices(self.plan)

    def shrink(
        self, model: MultiTaskModel, sparsifier: Sparsifier, optimizer: Optimizer
    ) -> MultiTaskModel | None:
        """The network without its dead channels, and the optimizer and the sparsifier on it; None where none can go.

        Raises TrainingError where the smaller network has another function.
        """
        dead = sparsifier.dead()
        if not any(flags.any() for flags in dead):
            return None
        plan = plan_slices(model, self._inputs, list(sparsifier.groups), dead, self._keep)
        if plan.empty:
            return None
        small = self._apply(plan, model, sparsifier, optimizer)
        _compare(model, small, self._inputs)
        self.plan = compose(self.plan, plan)
        return small

    def again(
        self, plan: Plan, model: MultiTaskModel, sparsifier: Sparsifier, optimizer: Optimizer
    ) -> MultiTaskModel:
        """Remove from the first network what had been removed from it."""
        self.plan = plan
        return self._apply(plan, model, sparsifier, optimizer)

    def shape(self, name: str) -> tuple[int, ...]:
        """The first shape of a parameter or buffer."""
        return self._shapes[name]

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of the network at its first size."""
        kept = self.kept
        return {name: put_back(name, value, self._shapes[name], kept) for name, value in state.items()}

    def _apply(
        self, plan: Plan, model: MultiTaskModel, sparsifier: Sparsifier, optimizer: Optimizer
    ) -> MultiTaskModel:
        small = apply_plan(model, plan)
        assert isinstance(small, MultiTaskModel)
        small.train(model.training)
        kept = kept_indices(plan)
        replace_parameters(optimizer, model, small, kept)
        sparsifier.shrink_to(kept, small)
        return small


def replace_parameters(optimizer: Optimizer, model: nn.Module, small: nn.Module, kept: Kept) -> None:
    """Put the smaller model's parameters in the place of the model's, with what is left of their state."""
    new = dict(small.named_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [
            new[names[id(parameter)]] if id(parameter) in names else parameter
            for parameter in group["params"]
        ]
    for parameter in list(optimizer.state):
        name = names.get(id(parameter))
        if name is None:
            continue
        state = optimizer.state.pop(parameter)
        optimizer.state[new[name]] = {
            key: cut(name, value, kept).contiguous()
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }


@torch.no_grad()
def _compare(model: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with evaluating(model), evaluating(small):
        before, after = model(*inputs), small(*inputs)
    for name, expected in before.items():
        error = float((expected - after[name]).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= SAME:
            raise TrainingError(
                f"removing dead channels changed the output {name} by {error:.1e} of its largest value",
                "this should not happen: leave out sparsity.shrink_every and report the recipe",
            )


def optimizer_whole(optimizer: Optimizer, model: nn.Module, shrinker: Shrinker) -> dict[str, Any]:
    """The optimizer's state_dict at the network's first size."""
    saved = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    shapes, kept = {id(p): p.shape for p in model.parameters()}, shrinker.kept
    state = {}
    for index, values in saved["state"].items():
        name = names.get(order[index])
        state[index] = values
        if name is not None:
            state[index] = {
                key: put_back(name, value, shrinker.shape(name), kept)
                if isinstance(value, Tensor) and value.shape == shapes[order[index]]
                else value
                for key, value in values.items()
            }
    return {**saved, "state": state}
