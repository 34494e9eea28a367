"""What is to be gone of a model: a share of its MACs, parameters or latency, and whether that can be reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from compactmtl.config.sparsity import ReductionConfig
from compactmtl.errors import ConfigError
from compactmtl.graph.space import Flags
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.removal import Cost
from compactmtl.sparsity.selection import select, units


class Target:
    """A reduction of a model's cost, counted from what it cost at first."""

    def __init__(self, groups: ChannelGroups, config: ReductionConfig, align: int, section: str) -> None:
        """`section` of the recipe is named in errors.

        Raises ConfigError where the groups say nothing of the cost, or the target cannot be reached with
        `min_channels` left everywhere; it says the most that can.
        """
        if align < 1:
            raise ConfigError(f"align is {align}", "channel counts are multiples of a number >= 1")
        self.config = config
        self._align = align
        self._table = LatencyTable.load(Path(config.latency_table)) if config.latency_table else None
        self._sizes = [family.size for family in groups]
        self.bind(groups)
        self.total = self.cost(groups.whole())
        most = 1 - self.cost(self._least()) / self.total
        if config.reduction > most:
            raise ConfigError(
                f"{section}.{config.key} {config.reduction} cannot be reached:"
                f" {math.floor(most * 1000) / 1000:.3f} is the most with min_channels {config.min_channels}"
                + (f" and min_share {config.min_share}" if config.min_share else "")
                + (f" and channels in multiples of {align}" if align > 1 else ""),
                f"lower {config.key} or what has to stay" + (", such as surgery.align" if align > 1 else ""),
            )

    def bind(self, groups: ChannelGroups) -> None:
        """Count from now on in `groups`, those that are left of the first ones."""
        self.groups = groups
        self.cost: Cost = groups.cost(self.config.measure, self._table)
        self.units = [
            units(family, self._align, self.config.min_channels, math.ceil(self.config.min_share * size))
            for family, size in zip(groups, self._sizes, strict=True)
        ]

    def removed(self, keep: Sequence[Flags]) -> float:
        """The share of the cost that is gone with only the groups in `keep` left."""
        return 1 - self.cost(keep) / self.total

    def choose(
        self,
        importance: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
        dead: Sequence[Flags],
        costs: Sequence[float],
        share: float = 1.0,
    ) -> list[Flags]:
        """The groups to remove for `share` of the reduction, see `select`."""
        bound = self.total * (1 - share * self.config.reduction)
        return select(importance, dead, self.units, costs, self.cost, bound, self._sizes)

    def _least(self) -> list[Flags]:
        flags = []
        for family, (_, floor) in zip(self.groups, self.units, strict=True):
            kept = np.zeros(family.size, dtype=bool)
            kept[:floor] = True
            flags.append(kept)
        return flags


def as_flags(groups: Sequence[torch.Tensor]) -> list[Flags]:
    """Bool tensors (n,) as arrays."""
    return [flags.cpu().numpy() for flags in groups]


def as_values(groups: Sequence[torch.Tensor]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Number tensors (n,) as float64 arrays."""
    return [values.double().cpu().numpy() for values in groups]
