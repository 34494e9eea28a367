"""What is to be gone of a model: a share of its MACs, parameters or latency, and whether that can be reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compactmtl.config.sparsity import ReductionConfig
from compactmtl.config.words import key
from compactmtl.errors import ConfigError
from compactmtl.graph.space import Flags
from compactmtl.sparsity import questions
from compactmtl.sparsity.grouped_tensor import BoundFamily, add, at_least_float32, to_host
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.saved import check_state
from compactmtl.sparsity.selection import (
    CostFunction,
    limits_of,
    marginal_costs,
    mean_costs,
    select,
    with_tied,
)
from compactmtl.sparsity.settle import Truth

ROUNDING = 1e-6  # of sums over layers in another order


class Target:
    """A reduction of a model's cost, counted from what it cost at first."""

    def __init__(
        self,
        groups: ChannelGroups,
        config: ReductionConfig,
        align: int | Sequence[int],
        section: str,
        table: LatencyTable | None = None,
    ) -> None:
        """`align` is one number, or one for each family. `section` of the recipe is named in errors. `table` is that of a
        latency budget; by default the file that the budget names.

        Raises ConfigError where the groups say nothing of the cost, a latency budget has no table or asks for nothing,
        or the target cannot be reached with `min_channels` left everywhere; it says the most that can.
        """
        steps = [align] * len(groups) if isinstance(align, int) else list(align)
        if min(steps, default=1) < 1:
            raise ConfigError(
                f"{key('surgery.align')} is {align}", "channel counts are multiples of a number >= 1"
            )
        self.config = config
        self._steps = steps
        self.truth = Truth()
        if table is None and config.latency is not None and config.latency.table is not None:
            table = LatencyTable.load(Path(config.latency.table))
        self._table = table
        self._sizes = [family.size for family in groups]
        self.bind(groups)
        self.total = self.cost(groups.whole())
        self.reduction = config.reduction_of(self.total, None if table is None else table.whole_ms)
        self._check_reachable(section)

    def _check_reachable(self, section: str) -> None:
        config, align = self.config, steps_in_words(self._steps)
        asked = key(f"{section}.{config.key}")
        least = self.cost(self._least())
        if self.reduction <= 0:
            raise ConfigError(
                f"{asked} {config.amount:g}: the original model takes {self.total:.3g} ms, which is within"
                " the budget: there is nothing to remove",
                "deploy the dense model, or ask for less",
            )
        most = 1 - least / self.total
        if self.reduction > most:
            if config.measure == "latency":
                timed = None if self._table is None else self._table.whole_ms  # what a share is of
                found = f"{least:.3g} ms of {timed or self.total:.3g} ms is the least"
                if config.key != "latency.ms":
                    found += f", and it asks for {self.total * (1 - self.reduction):.3g} ms:"
            else:
                found = f"{math.floor(most * 1000) / 1000:.3f} is the most"
            raise ConfigError(
                f"{asked} {config.amount:g} cannot be reached:"
                f" {found} with {key(f'{section}.min_channels')} {config.min_channels}"
                + (f" and {key(f'{section}.min_share')} {config.min_share}" if config.min_share else "")
                + (f" and channels in multiples of {align}" if align else ""),
                f"{'raise' if config.key == 'latency.ms' else 'lower'} {asked}, or lower what has to stay"
                + (f", such as {key('surgery.align')}" if align else ""),
            )

    def bind(self, groups: ChannelGroups) -> None:
        """Count from now on in `groups`, those that remain of the first ones."""
        self.groups = groups
        self.cost: CostFunction = groups.cost(self.config.measure, self._table)
        self.limits = [
            limits_of(family, step, self.config.min_channels, math.ceil(self.config.min_share * size), size)
            for family, step, size in zip(groups, self._steps, self._sizes, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and the table of it: a resumed run chooses by the same one. Plain numbers and text."""
        table = "" if self._table is None else self._table.model_dump_json()
        return {
            **self.truth.state_dict(),
            "table": table,
            "total": float(self.total),
            "reduction": float(self.reduction),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state that lacks something, or a table that is none."""
        check_state(state, ("table", "total", "reduction"), "a target")
        saved = LatencyTable.from_json(state["table"], "the saved state's table") if state["table"] else None
        self.truth.load_state_dict(state)
        if saved is not None and saved != self._table:
            self._table = saved
            self.bind(self.groups)
            self.total, self.reduction = float(state["total"]), float(state["reduction"])

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
        """The groups to remove for `share` of the reduction, see `select`; of latency as far as the table is right, which
        `truth` says.
        """
        whole = self.budget * self.truth.aim / self.truth.factor
        bound = self.total - share * (self.total - whole)
        return select(importance, dead, self.limits, costs, self.cost, bound)

    @property
    def budget(self) -> float:
        """What the model may cost in the end."""
        return self.total * (1 - self.reduction)

    def shortfall(self, keep: Sequence[Flags]) -> str:
        """In what the network with only the groups in `keep` misses the target, in words; empty where it meets it.

        A choice that was measured counts as it was measured.
        """
        cost = self.cost(keep)
        if self.config.measure != "latency":
            gone = 1 - cost / self.total
            missed = gone < self.reduction - ROUNDING
            return (
                f"{gone:.3f} of the {self.config.measure} can go, {self.reduction:g} have to"
                if missed
                else ""
            )
        measured = self.truth.of(cost)
        known = cost if measured is None else measured
        if known <= self.budget * (1 + ROUNDING) or (measured is None and self.truth.checks):
            return ""
        how = "by the table" if measured is None else "as measured"
        return f"what is left takes {known:.3g} ms {how}, {self.budget:.3g} ms are the most"

    def checked(self, choose: Callable[[], list[Flags]], share: float) -> list[Flags]:
        """What `choose` says for `share` of the reduction, once more where a measurement then says otherwise.

        A choice on the way is measured at milestones, so that no more dies than the budget needs; the final one until it
        is within the budget.
        """
        if share >= 1:
            return self.truth.settle(choose, self.cost, self.budget)
        gone = choose()
        if not self.truth.due(share):
            return gone
        keep = [~flags for flags in gone]
        return gone if self.truth.measure(keep, self.cost(keep), share) is None else choose()

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


def table_in(control: object) -> LatencyTable | None:
    """The latency table in the state of a control; None where its target has none.

    What goes on from that state chooses by this table. Raises ArtifactError where it is damaged.
    """
    target = control.get("target") if isinstance(control, Mapping) else None
    text = target.get("table") if isinstance(target, Mapping) else None
    return LatencyTable.from_json(text, "the saved state's table") if text else None


def steps_in_words(steps: Sequence[int]) -> str:
    """Such as "16" or "4 to 16"; empty where no count is bound to a multiple."""
    least, most = min(steps, default=1), max(steps, default=1)
    if most == 1:
        return ""
    return str(most) if least == most else f"{least} to {most}"


def as_flags(groups: Sequence[torch.Tensor]) -> list[Flags]:
    """Bool tensors (n,) as arrays."""
    return to_host(groups)


def as_values(groups: Sequence[torch.Tensor]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Number tensors (n,) as float64 arrays."""
    return to_host([values.double() for values in groups])


def magnitude(family: BoundFamily) -> Tensor:
    """The norm of each group's filters over the mean of its family's, (n,): layers differ in scale.

    A branch counts as much as all the channels that it adds to, also where it begins at zero and is yet to be learned.
    """
    producers = family.only("producer") or family.tensors
    norms = add(s.squares(at_least_float32(s.parameter)) for s in producers).sqrt()
    if family.family.branch:
        return torch.full_like(norms, float(family.family.channels))
    positive = norms > 0
    if not questions.on_host(norms.device):  # without a wait
        mean = norms.sum() / positive.sum()
        return torch.where(positive.any(), norms / mean, norms)
    return norms / norms[positive].mean() if bool(positive.any()) else norms
