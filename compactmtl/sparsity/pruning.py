"""Baselines that prune once, then fine-tune: the smallest norms, or what Torch-Pruning's pruners choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.config.sparsity import PruneConfig
from compactmtl.config.words import key
from compactmtl.errors import ConfigError
from compactmtl.graph.space import Flags
from compactmtl.sparsity.control import Control, load_vectors
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.pruner import Magnitude, Pruner
from compactmtl.sparsity.saved import check_state
from compactmtl.sparsity.target import Target, as_flags
from compactmtl.sparsity.torch_pruning_adapter import GroupNorm, Taylor


class Pruning(Control):
    """Sets the groups that a pruner chooses to zero after `config.at` of all steps, and holds them there."""

    def __init__(
        self,
        groups: ChannelGroups,
        config: PruneConfig,
        total_steps: int,
        model: nn.Module,
        example_inputs: Sequence[Tensor],
        *,
        align: int | Sequence[int] = 1,
        table: LatencyTable | None = None,
    ) -> None:
        """Raises ConfigError where the groups free nothing by themselves or the target cannot be reached,
        MissingDependencyError where Torch-Pruning is asked for and not installed."""
        if not groups.direct:
            raise ConfigError(
                "these channel groups free no MACs alone, only together with those of other layers",
                f"pruning needs coupled groups: {key('sparsity.groups')}=coupled",
            )
        self.groups = groups
        self.config = config
        self._at = max(round(config.at * total_steps), 1)
        self._first = round(config.regularize * total_steps)
        self.target: Target = Target(groups, config, align, "sparsity.prune", table)
        self._pruner = _pruner(config, groups, model, example_inputs)
        self._steps = 0
        self._view: OptimizerView | None = None
        with torch.no_grad():
            self._dead = [torch.zeros_like(family.zeros()) for family in groups.bound]

    @property
    def shrunk(self) -> frozenset[str]:
        return frozenset()  # no prox: weight decay is as for a dense model

    @property
    def reached(self) -> bool:
        return self._steps >= self._at

    @property
    def held(self) -> list[Tensor]:
        return self._dead

    def attach(self, optimizer: Optimizer) -> None:
        everything = [s for family in self.groups.bound for s in family.tensors]
        self._view = OptimizerView(optimizer, everything, decay_allowed=True)

    def observe(self) -> None:
        if self._first <= self._steps < self._at:
            self._pruner.regularize()
        if self._at - self.config.importance_steps <= self._steps < self._at:
            self._pruner.observe(self.groups)
        super().observe()

    @torch.no_grad()
    def step(self) -> None:
        self._steps += 1
        if self._steps < self._at:
            return
        if self._steps == self._at:
            chosen = self.target.checked(lambda: self._pruner.choose(self.target), 1.0)
            for dead, flags in zip(self._dead, chosen, strict=True):
                dead.copy_(torch.from_numpy(flags))
        for family, dead in zip(self.groups.bound, self._dead, strict=True):
            for s in family.tensors:
                s.zero_(s.parameter, dead)
                if self._view is not None and self._steps == self._at:
                    self._view.forget(s, dead)

    def foresee(self) -> list[Flags]:
        return self.target.by_magnitude()

    def removed(self) -> float:
        """The share of the target's measure that surgery can remove now."""
        return self.target.removed([~flags for flags in as_flags(self._dead)])

    def state_dict(self) -> dict[str, Any]:
        """Steps done, dead groups, and what the pruner has learned of them, where it learns."""
        state: dict[str, Any] = {"steps": self._steps, "target": self.target.state_dict()}
        for name, values in self._vectors().items():
            state[name] = [value.cpu().clone() for value in values]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, ("steps",), "pruning")
        if "target" in state:
            self.target.load_state_dict(state["target"])
        load_vectors(self._vectors(), state, "pruning", [family.size for family in self.groups])
        self._steps = int(state["steps"])

    def _vectors(self) -> dict[str, list[Tensor]]:
        learned = self._pruner.learned
        return {"dead": self._dead} | ({} if learned is None else {"importance": learned})

    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        self.groups = groups
        self.target.bind(groups)
        for vectors in self._vectors().values():
            vectors[:] = [v[index.to(v.device)] for v, index in zip(vectors, survivors, strict=True)]
        if self._view is not None:
            self.attach(self._view.optimizer)


def _pruner(
    config: PruneConfig, groups: ChannelGroups, model: nn.Module, example_inputs: Sequence[Tensor]
) -> Pruner:
    if config.method == "group_norm":
        return GroupNorm(model, example_inputs, groups, config.regularization)
    if config.method == "taylor":
        return Taylor(model, example_inputs, groups)
    return Magnitude()
