"""Shrink only the channels that matter least per MAC, on a schedule, until a target is met exactly.

A group lasso with adaptive weights (arXiv:2308.12114 shrinks all groups alike): the survivors are not
biased, no λ is chosen, and the MACs left follow a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.config.recipe import SelectiveConfig
from compactmtl.errors import ArtifactError, ConfigError, TrainingError
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.prox import prox_
from compactmtl.sparsity.selection import Flags, Macs, marginal_macs, select, units
from compactmtl.sparsity.slices import BoundFamily, Slices, add, wide

MEMORY = 0.95  # of the running importance: about the last 20 steps
SETTLE = 0.1  # last share of the ramp, in which the choice is final and the last chosen groups go


@dataclass(frozen=True)
class Timetable:
    """Optimizer steps (counted from 1) at which shrinking starts, the choice is final, and all is done."""

    start: int
    final: int
    end: int

    def share(self, step: int) -> float:
        """The share of the target that is due at `step`: a cubic ramp, steep first."""
        progress = min(max((step - self.start) / max(self.final - self.start, 1), 0.0), 1.0)
        return 1.0 if step >= self.final else 1 - (1 - progress) ** 3


class SelectiveShrinking:
    """Brings coupled channel groups to zero so that a stated share of the model's MACs can be removed.

        loss.backward()
        shrinking.observe()
        optimizer.step()
        shrinking.step()

    Every `every` steps the groups are ranked by a running first-order importance |Σ w·∂L/∂w| over their norm
    affines (γ, β), or over their producers where a family has none, for each MAC that the channel costs with
    what is left; the fewest that reach the scheduled MACs are chosen. Only those are shrunk, by a prox that
    takes `threshold` off the norm of the same tensors each step; the filters before a norm are left alone
    meanwhile, because a norm undoes their scale. A group whose importance returns leaves the choice. When a
    group is at zero all its members are set to exactly zero and held there. From `end` on, which every
    chosen group reaches at zero, the survivors train on alone.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        config: SelectiveConfig,
        total_steps: int,
        optimizer: Optimizer | None = None,
        *,
        align: int = 1,
    ) -> None:
        """Plan the shrinking over `total_steps` optimizer steps.

        `align` keeps channel counts at multiples of it where they shrink. The `optimizer`, where given (see
        `attach`), has its moments cleared for groups that die. Raises ConfigError where the groups have no MAC model, the target
        cannot be reached with `min_channels` left everywhere, or `start` is not before `end`.
        """
        if groups.macs is None:
            raise ConfigError(
                "these channel groups say nothing of the MACs that they free",
                "selective shrinking needs coupled groups: sparsity.groups=coupled",
            )
        if align < 1:
            raise ConfigError(f"align is {align}", "channel counts are multiples of a number >= 1")
        start, end = (max(round(share * total_steps), 1) for share in (config.start, config.end))
        if not start < end:
            raise ConfigError(
                f"selective.start {config.start} and end {config.end} leave no step of {total_steps} to shrink in",
                "give a later end, an earlier start, or more epochs",
            )
        self.groups = groups
        self.config = config
        self.timetable = Timetable(start, max(end - max(round(SETTLE * (end - start)), 1), start), end)
        self._macs: Macs = groups.macs
        self._families = groups.bound
        self._scored = [_scored(family) for family in self._families]
        self._units = [units(family, align, config.min_channels) for family in groups]
        self.total_macs = self._macs([np.ones(family.size, dtype=bool) for family in groups])
        self._check_target()
        self._steps = 0
        self._view: OptimizerView | None = None
        self._importance = [
            torch.zeros_like(_zeros(family), dtype=torch.float32) for family in self._families
        ]
        self._chosen = [_zeros(family) for family in self._families]
        with torch.no_grad():
            self._dead = [family.zeros() for family in self._families]
        if optimizer is not None:
            self.attach(optimizer)

    @property
    def shrunk(self) -> frozenset[str]:
        """Names of the tensors that the prox acts on; they want no weight decay."""
        return frozenset(s.name for scored in self._scored for s in scored)

    @property
    def reached(self) -> bool:
        """Whether the target has been met, and will stay so."""
        return self._steps >= self.timetable.end

    def attach(self, optimizer: Optimizer) -> None:
        """Clear the optimizer's moments of groups that die. Raises ConfigError as OptimizerView does."""
        everything = [s for family in self._families for s in family.slices]
        self._view = OptimizerView(optimizer, everything, decay_allowed=True)

    @torch.no_grad()
    def observe(self) -> None:
        """Add this step's gradients to the running importance: after backward, before the optimizer's step.

        A step whose gradients are not finite (a loss scaler will skip it) leaves a group's importance as it was.
        Raises TrainingError where a gradient is missing.
        """
        if self._steps >= self.timetable.final:
            return
        for scored, running in zip(self._scored, self._importance, strict=True):
            found = add(s.sums(wide(s.parameter) * wide(_gradient(s))) for s in scored).abs().to(running)
            blend = MEMORY * running + (1 - MEMORY) * found
            running.copy_(torch.where(torch.isfinite(found), blend, running))

    @torch.no_grad()
    def step(self) -> None:
        """Shrink what is chosen and hold what is dead: after the optimizer's step."""
        self._steps += 1
        time = self.timetable
        if self._steps < time.start:
            return
        due = (self._steps - time.start) % self.config.every == 0
        if self._steps == time.final or (due and self._steps < time.final):
            self._choose()
        for index, family in enumerate(self._families):
            if bool(self._chosen[index].any()):
                self._shrink(index, family)

    def macs_left(self) -> float:
        """MACs of the model without the dead groups."""
        return self._macs([~_numpy(dead) for dead in self._dead])

    def macs_removable(self) -> float:
        """The share of the model's MACs that surgery can remove now."""
        return 1 - self.macs_left() / self.total_macs

    def state_dict(self) -> dict[str, Any]:
        """Steps done, running importance, chosen and dead groups: tensors and plain numbers."""
        state: dict[str, Any] = {"steps": self._steps}
        for name, values in self._vectors().items():
            state[name] = [value.cpu().clone() for value in values]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups."""
        sizes = [family.size for family in self._families]
        for name, values in self._vectors().items():
            if name not in state or [len(value) for value in state[name]] != sizes:
                raise ArtifactError(
                    "the saved state of selective shrinking is of other channel groups",
                    "resume with the same recipe",
                )
            for value, saved in zip(values, state[name], strict=True):
                value.copy_(saved)
        self._steps = int(state["steps"])

    def _vectors(self) -> dict[str, list[Tensor]]:
        return {"importance": self._importance, "chosen": self._chosen, "dead": self._dead}

    def _check_target(self) -> None:
        least = []
        for family, (_, floor) in zip(self.groups, self._units, strict=True):
            flags = np.zeros(family.size, dtype=bool)
            flags[:floor] = True
            least.append(flags)
        most = 1 - self._macs(least) / self.total_macs
        if self.config.mac_reduction > most:
            raise ConfigError(
                f"selective.mac_reduction {self.config.mac_reduction} cannot be reached:"
                f" {most:.3f} is the most with min_channels {self.config.min_channels}",
                "lower mac_reduction or min_channels",
            )

    def _choose(self) -> None:
        dead = [_numpy(flags) for flags in self._dead]
        importance = [value.double().cpu().numpy() for value in self._importance]
        left = [~_numpy(flags) for flags in self._chosen]
        due = self.config.mac_reduction * self.timetable.share(self._steps)
        chosen = select(
            importance,
            dead,
            self._units,
            marginal_macs(self._macs, left),
            self._macs,
            self.total_macs * (1 - due),
        )
        for old, new in zip(self._chosen, chosen, strict=True):
            old.copy_(torch.from_numpy(new))

    def _shrink(self, index: int, family: BoundFamily) -> None:
        chosen, dead = self._chosen[index], self._dead[index]
        scored = self._scored[index]
        norms = add(s.sums(wide(s.parameter).square()) for s in scored).sqrt()
        remaining = max(self.timetable.end - self._steps + 1, 1)
        thresholds = torch.clamp_min(norms / remaining, self.config.threshold)
        gone = prox_(scored, torch.where(chosen, thresholds, 0.0)) & chosen
        fresh = gone & ~dead
        dead |= gone
        for s in family.slices:
            s.zero_(s.parameter, dead)
            if self._view is not None and bool(fresh.any()):
                self._view.forget(s, fresh)


def _scored(family: BoundFamily) -> tuple[Slices, ...]:
    return family.only("affine") or family.slices


def _zeros(family: BoundFamily) -> Tensor:
    return torch.zeros(family.size, dtype=torch.bool, device=family.slices[0].parameter.device)


def _gradient(s: Slices) -> Tensor:
    if s.parameter.grad is None:
        raise TrainingError(
            f"{s.name} has no gradient, and its channels' importance is read from it",
            "call observe() after backward() and before the gradients are set to None",
        )
    return s.parameter.grad


def _numpy(flags: Tensor) -> Flags:
    return flags.cpu().numpy()
