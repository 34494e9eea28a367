"""Torch-Pruning's GroupNorm and Taylor pruners as baselines. Source: arXiv:2301.12900.

Its own loop leaves a layer whole where all of it would go, and so misses high targets; here `min_channels` stay, as for
everyone, and channel counts are multiples of `surgery.align`, which is its `round_to`. What goes is set to zero by channel
groups, so that the rest of the pipeline is the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.config.words import key
from compactmtl.errors import ConfigError, MissingDependencyError, TrainingError
from compactmtl.graph.space import Flags
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.pruner import Pruner
from compactmtl.sparsity.target import Target, as_values

Values = np.ndarray[tuple[int], np.dtype[np.float64]]


class TorchPruning(Pruner):
    """Ranks all groups by the importance that a pruner of the library gives them, over all layers, as the library does."""

    def __init__(
        self, method: str, model: nn.Module, example_inputs: Sequence[Tensor], groups: ChannelGroups
    ) -> None:
        """Raises MissingDependencyError, naming the `method`, where torch_pruning is not installed."""
        try:
            import torch_pruning
        except ImportError as error:
            raise MissingDependencyError(
                f"{key('sparsity.prune.method')} {method} needs the package torch-pruning",
                "pip install 'compactmtl[baselines]'",
            ) from error
        self._library: Any = torch_pruning
        self._model, self._inputs = model, tuple(example_inputs)
        self._rows = _rows(groups)
        self._live: Any = None
        self._found: list[tuple[Any, int, dict[int, int], list[int]]] | None = None

    @property
    def live(self) -> Any:
        """The library's pruner of the model as it was when it was first asked for."""
        if self._live is None:
            modes = {module: module.training for module in self._model.modules()}
            heads = getattr(self._model, "heads", None)  # of another's model it may be a number
            own = {id(module) for module in heads.modules()} if isinstance(heads, nn.Module) else set()
            ignored = [
                module
                for name, module in self._model.named_modules()
                if id(module) in own
                and isinstance(module, nn.Conv2d | nn.Linear)
                and f"{name}.weight" not in self._rows
            ]
            inputs = self._inputs[0] if len(self._inputs) == 1 else self._inputs
            with torch.enable_grad():
                self._live = self.build(
                    self._library, self._model, inputs, global_pruning=True, ignored_layers=ignored
                )
            for module, training in modes.items():  # tracing leaves it in eval mode
                module.training = training
        return self._live

    @abstractmethod
    def build(self, library: Any, *args: Any, **options: Any) -> Any:
        """The library's pruner, of a model and inputs."""

    def choose(self, target: Target) -> list[Flags]:
        worth = self.importance(target.groups)
        for family, values in zip(target.groups, worth, strict=True):
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"the importance of the channels of {family.name} is not finite, so that none can be chosen",
                    "look for weights that are NaN or infinite; a lower learning rate may keep them finite",
                )
        dead = [np.zeros(len(values), dtype=bool) for values in worth]
        return target.choose(worth, dead, [1.0] * len(worth))

    @torch.no_grad()
    def importance(self, groups: ChannelGroups) -> list[Values]:
        """What the pruner makes of every group now; not finite where weights or gradients are not.

        Raises ConfigError for a layer that it does not see.
        """
        worth = [np.zeros(family.size) for family in groups]
        seen = [np.zeros(family.size, dtype=bool) for family in groups]
        for group, family, group_of, channels in self._groups():
            values = self.live.estimate_importance(group)
            if values is None:
                continue
            for channel, value in zip(channels, values.double().tolist(), strict=True):
                if channel in group_of:
                    worth[family][group_of[channel]] = value
                    seen[family][group_of[channel]] = True
        for own, found in zip(groups, seen, strict=True):
            if not found.all():
                raise ConfigError(
                    f"Torch-Pruning finds no group for the channels of {own.name}",
                    f"use {key('sparsity.prune.method')}=magnitude",
                )
        return worth

    def _groups(self) -> list[tuple[Any, int, dict[int, int], list[int]]]:
        """The library's groups that begin in a layer of ours: the family, the group of each row, and the rows; found once."""
        if self._found is None:
            pruner = self.live
            names = {id(module): name for name, module in self._model.named_modules()}
            self._found = []
            for group in pruner.DG.get_all_groups(
                ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
            ):
                dependency, channels = group[0]
                place = self._rows.get(f"{names.get(id(dependency.target.module))}.weight")
                if place is not None:
                    self._found.append((group, *place, [int(channel) for channel in channels]))
        return self._found


class GroupNorm(TorchPruning):
    """GroupNormPruner: its regularization, then its group norms."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Tensor],
        groups: ChannelGroups,
        regularization: float,
    ) -> None:
        super().__init__("group_norm", model, example_inputs, groups)
        self._regularization = regularization

    def build(self, library: Any, *args: Any, **options: Any) -> Any:
        importance = library.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
        return library.pruner.GroupNormPruner(
            *args, importance=importance, reg=self._regularization, **options
        )

    def regularize(self) -> None:
        self.live.regularize(self._model)


class Taylor(TorchPruning):
    """GroupTaylorImportance, averaged over the steps that it observes.

    The library reads one step's gradients; the mean over several is the fairer estimate.
    """

    def __init__(self, model: nn.Module, example_inputs: Sequence[Tensor], groups: ChannelGroups) -> None:
        super().__init__("taylor", model, example_inputs, groups)
        self.learned = [torch.zeros(family.size, dtype=torch.float64) for family in groups]

    def build(self, library: Any, *args: Any, **options: Any) -> Any:
        importance = library.importance.GroupTaylorImportance(normalizer="mean")
        return library.pruner.BasePruner(*args, importance=importance, **options)

    def observe(self, groups: ChannelGroups) -> None:
        assert self.learned is not None
        for total, values in zip(self.learned, self.importance(groups), strict=True):
            if np.isfinite(values).all():  # a loss scaler skips a step whose gradients are not
                total += torch.from_numpy(values)

    def choose(self, target: Target) -> list[Flags]:
        assert self.learned is not None
        dead = [np.zeros(len(values), dtype=bool) for values in self.learned]
        return target.choose(as_values(self.learned), dead, [1.0] * len(dead))


def _rows(groups: ChannelGroups) -> dict[str, tuple[int, dict[int, int]]]:
    """For each weight that writes grouped channels its family, and the group of each of its rows."""
    rows: dict[str, tuple[int, dict[int, int]]] = {}
    for index, family in enumerate(groups):
        for member in family.members:
            if member.role != "consumer" and member.dim == 0:
                place = {int(row): group for group, own in enumerate(member.indices) for row in own}
                rows[member.parameter] = (index, place)
    return rows
