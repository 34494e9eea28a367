"""Baselines that prune once: the smallest norms, or Torch-Pruning's GroupNorm pruner (arXiv:2301.12900), then fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.config.sparsity import PruneConfig
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.graph.space import Flags
from compactmtl.sparsity.control import Control, load_vectors
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.target import Target, as_flags


class Pruner(Protocol):
    """What chooses the groups: it may add to the gradients before, and is asked once."""

    def regularize(self) -> None: ...

    def choose(self, target: Target) -> list[Flags]: ...


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
        align: int = 1,
        table: LatencyTable | None = None,
    ) -> None:
        """Raises ConfigError where the groups free nothing by themselves or the target cannot be reached,
        MissingDependencyError where Torch-Pruning is asked for and not installed."""
        if not groups.direct:
            raise ConfigError(
                "these channel groups free no MACs alone, only together with those of other layers",
                "pruning needs coupled groups: sparsity.groups=coupled",
            )
        self.groups = groups
        self.config = config
        self._at = max(round(config.at * total_steps), 1)
        self._first = round(config.regularize * total_steps)
        self.target = Target(groups, config, align, "sparsity.prune", table)
        self._pruner: Pruner = (
            Magnitude()
            if config.method == "magnitude"
            else GroupNorm(model, example_inputs, config.regularization)
        )
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
        super().observe()

    @torch.no_grad()
    def step(self) -> None:
        self._steps += 1
        if self._steps < self._at:
            return
        if self._steps == self._at:
            for dead, flags in zip(self._dead, self._pruner.choose(self.target), strict=True):
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
        return {"steps": self._steps, "dead": [dead.cpu().clone() for dead in self._dead]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_vectors({"dead": self._dead}, state, "pruning", [family.size for family in self.groups])
        self._steps = int(state["steps"])

    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        self.groups = groups
        self.target.bind(groups)
        self._dead = [dead[index.to(dead.device)] for dead, index in zip(self._dead, survivors, strict=True)]
        if self._view is not None:
            self.attach(self._view.optimizer)


class Magnitude:
    """The groups whose filters have the smallest l2 norm, each over the mean of its layer's."""

    def regularize(self) -> None:
        """Nothing: the model trains dense until then."""

    def choose(self, target: Target) -> list[Flags]:
        return target.by_magnitude()


class GroupNorm:
    """Torch-Pruning's GroupNormPruner: its regularization, its group importance, ranked over all layers as it does.

    Its own loop leaves a layer whole where all of it would go, and so misses high targets; here `min_channels` stay,
    as for everyone. What goes is set to zero by channel groups, so that the rest of the pipeline is the same for all.
    """

    def __init__(self, model: nn.Module, example_inputs: Sequence[Tensor], regularization: float) -> None:
        """Raises MissingDependencyError where torch_pruning is not installed."""
        try:
            import torch_pruning
        except ImportError as error:
            raise MissingDependencyError(
                "sparsity.prune.method group_norm needs the package torch-pruning",
                "pip install 'compactmtl[baselines]'",
            ) from error
        self._library: Any = torch_pruning
        self._model, self._inputs = model, tuple(example_inputs)
        self._regularization = regularization
        self._live: Any = None

    @property
    def _ready(self) -> Any:
        if self._live is None:
            self._live = self._pruner()
        return self._live

    def regularize(self) -> None:
        self._ready.regularize(self._model)

    def choose(self, target: Target) -> list[Flags]:
        worth = self.importance(target.groups)
        dead = [np.zeros(len(values), dtype=bool) for values in worth]
        return target.choose(worth, dead, [1.0] * len(worth))

    @torch.no_grad()
    def importance(self, groups: ChannelGroups) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """What the pruner makes of every group. Raises ConfigError for a layer that it does not see."""
        rows, pruner = _rows(groups), self._ready
        names = {id(module): name for name, module in self._model.named_modules()}
        worth = [np.full(family.size, np.nan) for family in groups]
        for group in pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
        ):
            dependency, channels = group[0]
            place = rows.get(f"{names.get(id(dependency.target.module))}.weight")
            values = pruner.estimate_importance(group)
            if place is None or values is None:
                continue
            family, group_of = place
            for channel, value in zip(channels, values.double().tolist(), strict=True):
                if int(channel) in group_of:
                    worth[family][group_of[int(channel)]] = value
        for own, values in zip(groups, worth, strict=True):
            if np.isnan(values).any():
                raise ConfigError(
                    f"Torch-Pruning finds no group for the channels of {own.name}",
                    "use sparsity.prune.method=magnitude",
                )
        return worth

    def _pruner(self) -> Any:
        modes = {module: module.training for module in self._model.modules()}
        heads = getattr(self._model, "heads", None)
        ignored = [m for m in heads.modules() if isinstance(m, nn.Conv2d | nn.Linear)] if heads else []
        with torch.enable_grad():
            pruner = self._library.pruner.GroupNormPruner(
                self._model,
                self._inputs[0] if len(self._inputs) == 1 else self._inputs,
                importance=self._library.importance.GroupMagnitudeImportance(p=2, normalizer="mean"),
                reg=self._regularization,
                global_pruning=True,
                ignored_layers=ignored,
            )
        for module, training in modes.items():  # tracing leaves it in eval mode
            module.training = training
        return pruner


def _rows(groups: ChannelGroups) -> dict[str, tuple[int, dict[int, int]]]:
    """For each weight that writes grouped channels its family, and the group of each of its rows."""
    rows: dict[str, tuple[int, dict[int, int]]] = {}
    for index, family in enumerate(groups):
        for member in family.members:
            if member.role != "consumer" and member.dim == 0:
                place = {int(row): group for group, own in enumerate(member.indices) for row in own}
                rows[member.parameter] = (index, place)
    return rows
