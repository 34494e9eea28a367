"""A λ that finds itself: a group penalty that brings a model to a stated size at a stated step.

At each setting of λ the groups are ordered by their distance, the sum of λ over steps that would bring them to zero.
The first of them that meet the target are selected; λ is what the last of these needs to arrive at the end, plus what
its gradient won back since the setting before. Nothing is summed up over time, so nothing winds up while
all groups shrink and none has died yet. Unselected groups close to zero are exempt from the penalty until the next
setting, so that the target is not overshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.config.sparsity import ControllerConfig
from compactmtl.config.words import key
from compactmtl.errors import ConfigError
from compactmtl.graph.space import Flags
from compactmtl.sparsity.control import Control, attached, load_vectors
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.penalty import Penalty
from compactmtl.sparsity.proximal import ProximalStep
from compactmtl.sparsity.saved import check_state
from compactmtl.sparsity.target import Target, as_flags, as_values
from compactmtl.sparsity.task_importance import TaskImportance

WIDEST = 100.0  # the largest factor between a layer's λ and the mean, either way
STEEPEST = 4.0  # λ changes by at most this factor from one setting to the next
# Unselected groups are exempt within this many times the distance that λ covers until the next setting.
EXEMPT_RANGE = 4.0
MOST_ON_THE_WAY = 0.99  # of the way to the end, for a choice that may still change


class StrengthController(Control):
    """Sets a penalty's λ so that a target is reached at `config.end`; then λ is 0 and the zeros are held.

    It takes the proximal steps itself: `attach(optimizer)` once, then in every step `optimizer.step()` and `step()`.
    """

    def __init__(
        self,
        penalty: Penalty,
        config: ControllerConfig,
        total_steps: int,
        warmup: float = 0.05,
        *,
        align: int | Sequence[int] = 1,
        table: LatencyTable | None = None,
    ) -> None:
        """Control over `total_steps` optimizer steps, from the share `warmup` of them on.

        `align` keeps channel counts at multiples of it where they shrink, of one number or of one for each family. `table` is
        that of a latency budget. Raises ConfigError where the target cannot be reached, or `warmup` is not before the end.
        """
        self.groups = penalty.groups
        self.penalty = penalty
        self.config = config
        self.start, self.end = round(warmup * total_steps), max(round(config.end * total_steps), 1)
        if not self.start < self.end:
            raise ConfigError(
                f"{key('sparsity.warmup')} {warmup} and {key('sparsity.controller.end')} {config.end} leave no step of"
                f" {total_steps} to shrink in",
                f"give a later end, a shorter warmup, or more {key('train.epochs')}",
            )
        self.target: Target = Target(self.groups, config, align, "sparsity.controller", table)
        if config.weights == "cost":
            penalty.factors = cost_factors(self.target)
        self.tasks: TaskImportance = TaskImportance(
            [family.valued for family in self.groups.bound],
            [family.size for family in self.groups],
            config.tasks_every,
            steps=total_steps,
        )
        self._going = [
            torch.zeros(family.size, dtype=torch.bool) for family in self.groups
        ]  # at the last setting
        self._proximal: ProximalStep | None = None
        self._steps = 0
        self._before: tuple[int, float] | None = None  # step and distance of the last group selected
        self._forced = 0.0
        self.penalty.strength = 0.0

    @property
    def shrunk(self) -> frozenset[str]:
        return self.groups.parameter_names

    @property
    def reached(self) -> bool:
        return self._steps >= self.end

    @property
    def strength(self) -> float:
        return self.penalty.strength

    @property
    def forced(self) -> float:
        """The share of groups that were not yet zero at the end, and were set to it."""
        return self._forced

    @property
    def held(self) -> list[Tensor] | None:
        return attached(self._proximal).dead if self.reached else None

    def attach(self, optimizer: Optimizer) -> None:
        self._proximal = ProximalStep(optimizer, self.penalty)

    def look(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        if self.tasks.due(self._steps, len(losses)):
            self.tasks.look(self._steps, losses, scale)

    @torch.no_grad()
    def step(self) -> None:
        proximal = attached(self._proximal)
        self._steps += 1
        if self._steps <= self.start or not proximal.started:
            return
        if self._steps >= self.end:
            if self._steps == self.end:
                self._finish(proximal)
            proximal.hold()
            return
        if (self._steps - self.start - 1) % self.config.every == 0:
            self._set(proximal)
        proximal.step()

    def _set(self, proximal: ProximalStep) -> None:
        """Order the groups anew, and set λ."""
        distances = as_values(proximal.distances())
        done = (self._steps - self.start) / (self.end - self.start)
        selected = self.target.checked(lambda: self._selected(distances), min(done, MOST_ON_THE_WAY))
        self._note(selected)
        remaining = [d[flags & (d > 0)] for d, flags in zip(distances, selected, strict=True)]
        finite = [d[np.isfinite(d)] for d in remaining]
        last = max((float(d.max()) for d in finite if len(d)), default=0.0)
        strength = last / (self.end - self._steps + 1)
        old = self.penalty.strength
        if self._before is not None and old > 0 and last > 0:
            step, distance = self._before
            progress = (distance - last) / (self._steps - step)
            strength += min(max(old - progress, -old / 2), 2 * old)
            strength = min(max(strength, old / STEEPEST), old * STEEPEST)
        self._before = (self._steps, last)
        self.penalty.strength = strength
        near = EXEMPT_RANGE * strength * self.config.every
        proximal.exempt = [
            torch.from_numpy(~flags & (d <= near)).to(dead.device)
            for d, flags, dead in zip(distances, selected, proximal.dead, strict=True)
        ]

    def _selected(self, distances: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]]) -> list[Flags]:
        dead = [d == 0 for d in distances]
        # what nothing pulls comes last, in any order
        ranked = [
            np.nan_to_num(d, nan=np.finfo(d.dtype).max, posinf=np.finfo(d.dtype).max) for d in distances
        ]
        return self.target.choose(ranked, dead, [1.0] * len(ranked))

    def _note(self, selected: Sequence[Flags]) -> None:
        """Tell the tasks' importance what is selected to go, and was not at the setting before."""
        flags = [torch.from_numpy(one.copy()) for one in selected]
        self.tasks.chosen([one & ~before for one, before in zip(flags, self._going, strict=True)])
        self._going = flags

    def _finish(self, proximal: ProximalStep) -> None:
        """Set the selected groups that have not arrived to zero, and hold."""
        distances = as_values(proximal.distances())
        selected = self.target.checked(lambda: self._selected(distances), 1.0)
        self._note(selected)
        late = sum(int((flags & (d > 0)).sum()) for d, flags in zip(distances, selected, strict=True))
        self._forced = late / max(sum(map(len, selected)), 1)
        proximal.hold([torch.from_numpy(flags) for flags in selected])
        self.penalty.strength, proximal.exempt = 0.0, None

    def foresee(self) -> list[Flags]:
        return self.target.by_magnitude()

    def removed(self) -> float:
        """The share of the target's measure that surgery can remove now."""
        return self.target.removed([~flags for flags in as_flags(attached(self._proximal).dead)])

    def state_dict(self) -> dict[str, Any]:
        proximal = attached(self._proximal)
        exempt = proximal.exempt or [torch.zeros_like(dead) for dead in proximal.dead]
        return {
            "steps": self._steps,
            "before": list(self._before) if self._before else [],
            "forced": self._forced,
            "target": self.target.state_dict(),
            "exempt": [flags.cpu().clone() for flags in exempt],
            "tasks": self.tasks.state_dict(),
            "selected": [flags.clone() for flags in self._going],
            **proximal.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, ("steps", "forced", "before"), "the controller")
        proximal = attached(self._proximal)
        proximal.load_state_dict(dict(state))
        exempt = [torch.zeros_like(dead) for dead in proximal.dead]
        if "target" in state:
            self.target.load_state_dict(state["target"])
        if "spared" in state:  # the name in checkpoints of earlier versions
            state = {**state, "exempt": state["spared"]}
        load_vectors({"exempt": exempt}, state, "the controller", [len(dead) for dead in proximal.dead])
        proximal.exempt = exempt
        if "tasks" in state:  # checkpoints of earlier versions know no tasks
            check_state(state, ("selected",), "the controller")
            self.tasks.load_state_dict(state["tasks"])
            self._going = [flags.clone() for flags in state["selected"]]
        self._steps, self._forced = int(state["steps"]), float(state["forced"])
        before = state["before"]
        self._before = (int(before[0]), float(before[1])) if before else None

    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        old = attached(self._proximal)
        self.groups = self.penalty.groups = groups
        self.target.bind(groups)
        self.tasks.shrink_to([family.valued for family in groups.bound], survivors)
        self._going = [flags[index] for flags, index in zip(self._going, survivors, strict=True)]
        self._proximal = old.rebuilt()
        if old.exempt is not None:
            self._proximal.exempt = [
                flags[index.to(flags.device)] for flags, index in zip(old.exempt, survivors, strict=True)
            ]


def cost_factors(target: Target) -> list[float]:
    """For each family what one of its groups costs of the target's measure over the mean group. Source: arXiv:1711.06798.

    With one λ for all, layers whose gradients are small die first, down to their least channels, whatever they cost. A branch
    costs a share for each channel that it adds to, for its group's norm and √d grow with their number.
    """
    groups, measure = target.groups, target.config.measure
    if measure == "latency" and groups.direct:
        costs = target.channel_costs(groups.whole())
    elif measure == "parameters":
        costs = [family.parameters_per_channel for family in groups]
    else:
        costs = [family.macs_per_channel for family in groups]
    sizes = [family.size * family.channels for family in groups]
    costs = [cost / family.channels for cost, family in zip(costs, groups, strict=True)]
    mean = sum(cost * size for cost, size in zip(costs, sizes, strict=True)) / sum(sizes)
    return [min(max(cost / mean, 1 / WIDEST), WIDEST) if mean > 0 else 1.0 for cost in costs]
