"""What is to be gone of a model: a share of its MACs, parameters or latency, and whether that can be reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compactmtl.config.sparsity import ReductionConfig
from compactmtl.errors import ConfigError
from compactmtl.graph.space import Flags
from compactmtl.sparsity import questions
from compactmtl.sparsity.grouped_tensor import BoundFamily, add, at_least_float32, to_host
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.selection import (
    CostFunction,
    limits_of,
    marginal_costs,
    mean_costs,
    select,
    with_tied,
)


class Target:
    """A reduction of a model's cost, counted from what it cost at first."""

    def __init__(
        self,
        groups: ChannelGroups,
        config: ReductionConfig,
        align: int,
        section: str,
        table: LatencyTable | None = None,
    ) -> None:
        """`section` of the recipe is named in errors. `table` is that of a latency budget; by default the file that
        the budget names.

        Raises ConfigError where the groups say nothing of the cost, a latency budget has no table or asks for nothing,
        or the target cannot be reached with `min_channels` left everywhere; it says the most that can.
        """
        if align < 1:
            raise ConfigError(f"surgery.align is {align}", "channel counts are multiples of a number >= 1")
        self.config = config
        self._align = align
        if table is None and config.latency is not None and config.latency.table is not None:
            table = LatencyTable.load(Path(config.latency.table))
        self._table = table
        self._sizes = [family.size for family in groups]
        self.bind(groups)
        self.total = self.cost(groups.whole())
        self.reduction = config.reduction_of(self.total, None if table is None else table.whole_ms)
        self._check_reachable(section)

    def _check_reachable(self, section: str) -> None:
        config, align = self.config, self._align
        least = self.cost(self._least())
        if self.reduction <= 0:
            raise ConfigError(
                f"{section}.{config.key} {config.amount:g}: the original model takes {self.total:.3g} ms, which is within"
                " the budget: there is nothing to remove",
                "deploy the dense model, or ask for less",
            )
        most = 1 - least / self.total
        if self.reduction > most:
            if config.measure == "latency":
                found = f"{least:.3g} ms of {self.total:.3g} ms is the least"
            else:
                found = f"{math.floor(most * 1000) / 1000:.3f} is the most"
            raise ConfigError(
                f"{section}.{config.key} {config.amount:g} cannot be reached:"
                f" {found} with {section}.min_channels {config.min_channels}"
                + (f" and {section}.min_share {config.min_share}" if config.min_share else "")
                + (f" and channels in multiples of {align}" if align > 1 else ""),
                f"{'raise' if config.key == 'latency.ms' else 'lower'} {section}.{config.key}, or lower what has to stay"
                + (", such as surgery.align" if align > 1 else ""),
            )

    def bind(self, groups: ChannelGroups) -> None:
        """Count from now on in `groups`, those that remain of the first ones."""
        self.groups = groups
        self.cost: CostFunction = groups.cost(self.config.measure, self._table)
        self.limits = [
            limits_of(
                family, self._align, self.config.min_channels, math.ceil(self.config.min_share * size), size
            )
            for family, size in zip(groups, self._sizes, strict=True)
        ]

    def removed(self, keep: Sequence[Flags]) -> float:
        """The share of the cost that is gone with only the groups in `keep`."""
        return 1 - self.cost(keep) / self.total

    def channel_costs(self, keep: Sequence[Flags]) -> list[float]:
        """What a channel of each family costs with only `keep`: of latency, which falls in steps, on the average."""
        if self.config.measure == "latency":
            costs = mean_costs(self.cost, keep, self.limits)
        else:
            costs = marginal_costs(self.cost, keep)
        return with_tied(costs, self.cost, keep, self.limits)

    def choose(
        self,
        importance: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]],
        dead: Sequence[Flags],
        costs: Sequence[float],
        share: float = 1.0,
    ) -> list[Flags]:
        """The groups to remove for `share` of the reduction, see `select`."""
        bound = self.total * (1 - share * self.reduction)
        return select(importance, dead, self.limits, costs, self.cost, bound)

    def by_magnitude(self, costs: Sequence[float] | None = None) -> list[Flags]:
        """The groups to remove for the whole reduction by the norm of their filters as they are, over the costs given."""
        with torch.no_grad():
            worth = as_values([magnitude(family) for family in self.groups.bound])
        dead = [np.zeros(family.size, dtype=bool) for family in self.groups]
        return self.choose(worth, dead, [1.0] * len(worth) if costs is None else costs)

    def _least(self) -> list[Flags]:
        flags = []
        for family, limits in zip(self.groups, self.limits, strict=True):
            kept = np.zeros(family.size, dtype=bool)
            kept[: limits.least] = True
            flags.append(kept)
        return flags


def as_flags(groups: Sequence[torch.Tensor]) -> list[Flags]:
    """Bool tensors (n,) as arrays."""
    return to_host(groups)


def as_values(groups: Sequence[torch.Tensor]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Number tensors (n,) as float64 arrays."""
    return to_host([values.double() for values in groups])


def magnitude(family: BoundFamily) -> Tensor:
    """The norm of each group's filters over the mean of its family's, (n,): layers differ in scale."""
    producers = family.only("producer") or family.tensors
    norms = add(s.squares(at_least_float32(s.parameter)) for s in producers).sqrt()
    positive = norms > 0
    if not questions.on_host(norms.device):  # without a wait
        mean = norms.sum() / positive.sum()
        return torch.where(positive.any(), norms / mean, norms)
    return norms / norms[positive].mean() if bool(positive.any()) else norms
