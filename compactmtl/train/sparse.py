"""A recipe's structured sparsity during training: when it acts, what it reports, when its model may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.config import Recipe
from compactmtl.config.recipe import SparsityConfig
from compactmtl.sparsity import (
    ChannelGroups,
    GroupLasso,
    ProximalStep,
    SelectiveShrinking,
    channel_groups,
    zero_share,
)


class Sparsifier:
    """Either a group lasso of fixed strength or selective shrinking to a target, behind one schedule.

    Steps are counted from 0, as many as the optimizer has made. `shrunk` names the parameters that the
    prox shrinks; they get no weight decay.
    """

    def __init__(self, groups: ChannelGroups, config: SparsityConfig, total_steps: int, align: int) -> None:
        self.groups = groups
        self._config = config
        self._total_steps = total_steps
        self._selective: SelectiveShrinking | None = None
        self._penalty: GroupLasso | None = None
        self._proximal: ProximalStep | None = None
        if config.selective is not None:
            self._selective = SelectiveShrinking(groups, config.selective, total_steps, align=align)
            self.shrunk = self._selective.shrunk
        else:
            assert config.strength is not None  # the recipe has exactly one of the two
            self._penalty = GroupLasso(groups, config.strength)
            self.shrunk = groups.parameter_names

    def attach(self, optimizer: Optimizer) -> None:
        """Read learning rates and clear moments of dead groups in `optimizer`; once, before the first step."""
        if self._selective is not None:
            self._selective.attach(optimizer)
        else:
            assert self._penalty is not None
            self._proximal = ProximalStep(optimizer, self._penalty)

    def observe(self) -> None:
        """After backward, before the gradients are clipped."""
        if self._selective is not None:
            self._selective.observe()

    def shrink(self, step: int) -> None:
        """After the optimizer's step number `step`."""
        if self._selective is not None:
            self._selective.step()
        elif step >= self._first_step:
            assert self._proximal is not None
            self._proximal.step()

    @property
    def _first_step(self) -> int:
        return round(self._config.warmup * self._total_steps)

    def eligible(self, steps: int) -> bool:
        """Whether a model after `steps` steps may become the best checkpoint.

        With a target: once it is reached, for before that the best model is the denser one. A fixed
        strength has no target: once the prox has begun.
        """
        return self._selective.reached if self._selective is not None else steps > self._first_step

    def report(self) -> dict[str, float | None]:
        """For the log: share of zero groups, λ, share of MACs that surgery can remove (none: not known).

        Zeros on input channels say nothing of MACs: a channel goes only when all its readers ignore it.
        """
        removable = None
        if self.groups.macs is not None:
            with torch.no_grad():
                keep = [~family.zeros().cpu().numpy() for family in self.groups.bound]
            whole = self.groups.macs([alive | True for alive in keep])
            removable = 1 - self.groups.macs(keep) / whole
        return {
            "groups_zero": zero_share(self.groups),
            "strength": self._penalty.strength if self._penalty is not None else None,
            "macs_removable": removable,
        }

    def state_dict(self) -> dict[str, Any]:
        return self._controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._controller.load_state_dict(dict(state))

    @property
    def _controller(self) -> SelectiveShrinking | ProximalStep:
        if self._selective is not None:
            return self._selective
        assert self._proximal is not None
        return self._proximal


def build_sparsifier(
    recipe: Recipe, model: nn.Module, inputs: tuple[Tensor], total_steps: int
) -> Sparsifier | None:
    """The recipe's sparsity over the shared encoder of `model`, or None where it asks for none.

    `inputs` are example inputs on the model's device. Raises ConfigError for a target that can't be
    reached or a model without channels to remove, SurgeryError where the model can't be traced.
    """
    config = recipe.sparsity
    if config is None:
        return None
    groups = channel_groups(model, inputs, kind=config.groups, scope="encoder")
    return Sparsifier(groups, config, total_steps, recipe.surgery.align)
