"""Shrink only the channels that matter least per MAC, on a schedule, until a target is met exactly.

A group lasso with adaptive weights (arXiv:2308.12114 shrinks all groups alike): the survivors are not
biased, no λ is chosen, and the MACs left follow a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.config.lookup import name_hint
from compactmtl.config.sparsity import SelectiveConfig
from compactmtl.config.words import key
from compactmtl.errors import ConfigError, TrainingError
from compactmtl.graph.space import Flags
from compactmtl.sparsity import questions
from compactmtl.sparsity.bounds import TRIES, Bounds
from compactmtl.sparsity.control import Control, load_vectors, silence
from compactmtl.sparsity.grouped_tensor import BoundFamily, add, at_least_float32, waves
from compactmtl.sparsity.groups import MEASURES, ChannelGroups
from compactmtl.sparsity.held_out import HeldOut
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.prox import prox_asking
from compactmtl.sparsity.questions import Asking, answered, answered_together, read
from compactmtl.sparsity.running_importance import RunningImportance
from compactmtl.sparsity.saved import check_state
from compactmtl.sparsity.snapshot import Snapshot
from compactmtl.sparsity.target import Target, as_flags
from compactmtl.sparsity.task_importance import TaskImportance
from compactmtl.sparsity.timetable import Ramp as Ramp
from compactmtl.sparsity.timetable import Timetable as Timetable
from compactmtl.surgery.slice_plan import Kept

SETTLE = 0.1  # last share of the ramp, in which the choice is final and the last chosen groups go


class SelectiveShrinking(Control):
    """Brings coupled channel groups to zero so that a stated share of the model's cost can be removed.

        loss.backward()
        shrinking.observe()
        optimizer.step()
        shrinking.step()

    Every `every` steps the groups are ranked by a running first-order importance |Σ w·∂L/∂w| over their norm
    affines (γ, β), or over their producers where a family has none, for what the channel costs the whole network (MACs,
    parameters or milliseconds); other importances, costs and powers of the cost are options. The fewest that reach the
    scheduled MACs are chosen. Only those are shrunk, by a prox that takes `threshold` off the norm of the same tensors
    each step; the filters before a norm are left alone meanwhile, because a norm undoes their scale. A group whose importance returns leaves the choice. When a
    group is at zero all its members are set to exactly zero and held there. From `end` on, which every
    chosen group reaches at zero, the survivors train on alone.

    `look(losses)` before the backward pass tells what each channel is worth to each task, every so many steps. With bounds
    (`config.losses`) that decides what goes, and channels go in stages: after `step()`, where `check_due`, the caller
    measures the tasks on held-out data and hands the values to `judge`, which lets go for good what the last stage removed,
    or puts it back (see `Bounds`).
    """

    def __init__(
        self,
        groups: ChannelGroups,
        config: SelectiveConfig,
        total_steps: int,
        optimizer: Optimizer | None = None,
        *,
        align: int | Sequence[int] = 1,
        table: LatencyTable | None = None,
    ) -> None:
        """Plan the shrinking over `total_steps` optimizer steps.

        `align` keeps channel counts at multiples of it where they shrink, of one number or of one for each family. `table` is
        that of a latency budget. The `optimizer`, where given (see `attach`), has its moments cleared for groups that die. Raises ConfigError where the groups free nothing by
        themselves, the target cannot be reached with `min_channels` left everywhere, or `start` is not before `end`.
        """
        if not groups.direct:
            raise ConfigError(
                "these channel groups free no MACs alone, only together with those of other layers",
                f"selective shrinking needs coupled groups: {key('sparsity.groups')}=coupled",
            )
        start, end = (max(round(share * total_steps), 1) for share in (config.start, config.end))
        if not start < end:
            raise ConfigError(
                f"{key('sparsity.selective.start')} {config.start} and {key('sparsity.selective.end')} {config.end} leave no step"
                f" of {total_steps} to shrink in",
                f"give a later end, an earlier start, or more {key('train.epochs')}",
            )
        self.config = config
        self.target: Target = Target(groups, config, align, "sparsity.selective", table)
        # with bounds no choice is final before it was checked at `end`
        final = end if config.losses else max(end - max(round(SETTLE * (end - start)), 1), start)
        self.timetable = Timetable(start, final, end, config.ramp, self.target.reduction)
        self.bounds: Bounds | None = None
        if config.losses:
            self.bounds = Bounds.between(config.losses, start, end, config.checks)
        self._snapshot = Snapshot()
        self._importance = RunningImportance(groups.bound, config.importance, config.importance_steps)
        self.tasks: TaskImportance = TaskImportance(
            self._importance.valued,
            [family.size for family in groups],
            config.tasks_every,
            steps=total_steps,
            squared=config.importance == "fisher",
            alone=self.bounds is not None,
        )
        self._bind(groups)
        self._whole = self.target.channel_costs(groups.whole()) if config.cost_of == "whole" else None
        self._steps = 0
        self._view: OptimizerView | None = None
        self._chosen = [_zeros(family) for family in self._families]
        with torch.no_grad():
            self._dead = [family.dead_at_first() for family in self._families]
        # dead and past a check, where there are bounds
        self._settled = [flags.clone() for flags in self._dead]
        if optimizer is not None:
            self.attach(optimizer)

    def _bind(self, groups: ChannelGroups) -> None:
        self.groups = groups
        self._families = groups.bound
        self._scored = [family.scored for family in self._families]
        self._importance.bind(self._families)

    @property
    def shrunk(self) -> frozenset[str]:
        """Names of the tensors that the prox acts on; they want no weight decay."""
        return frozenset(s.name for scored in self._scored for s in scored)

    @property
    def reached(self) -> bool:
        """Whether the target has been met, and will stay so; or a bound has ended the shrinking."""
        return self._steps >= self.timetable.end or self._stopped

    @property
    def _stopped(self) -> bool:
        return self.bounds is not None and self.bounds.stopped is not None

    @property
    def short(self) -> str:
        if self.bounds is None or not self.reached or not self.target.shortfall(self._keep()):
            return ""
        gone = self.removed()
        why = "; ".join(self.bounds.broken) or "what went before was put back"
        return f"the tasks' bounds ended it at {100 * gone:.1f} % of the {MEASURES[self.target.config.measure]} removed: {why}"

    @property
    def check_due(self) -> bool:
        return self.bounds is not None and self.bounds.due(self._steps)

    @property
    def settled(self) -> list[Tensor]:
        return self._dead if self.bounds is None else self._settled

    @property
    def held(self) -> list[Tensor]:
        """The groups that have died, bool (n,) a family: they stay dead."""
        return self._dead

    def attach(self, optimizer: Optimizer) -> None:
        """Clear the optimizer's moments of groups that die. Raises ConfigError as OptimizerView does."""
        everything = [s for family in self._families for s in family.tensors]
        self._view = OptimizerView(optimizer, everything, decay_allowed=True)

    @torch.no_grad()
    def observe(self) -> None:
        """Add this step's gradients to the running importance: after backward, before the optimizer's step.

        A step whose gradients are not finite (a loss scaler will skip it) leaves a group's importance as it was.
        The gradients of dead groups are then set to zero: they have no say in clipping. Raises TrainingError where a
        gradient is missing.
        """
        if self._steps < self.timetable.final:
            self._importance.learn()
        silence(self.groups, self._dead)

    def look(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        if not self.tasks.due(self._steps, len(losses)):
            return
        for name in self.config.losses:
            if name not in losses:
                raise ConfigError(
                    f"{key('sparsity.selective.losses')} names {name!r}, which is no task",
                    name_hint(name, list(losses)),
                )
        self.tasks.look(self._steps, losses, scale)

    @torch.no_grad()
    def step(self) -> None:
        """Shrink what is chosen and hold what is dead: after the optimizer's step."""
        self._steps += 1
        time = self.timetable
        if self._steps < time.start:
            return
        due = (self._steps - time.start) % self.config.every == 0
        if self.bounds is None and (self._steps == time.final or (due and self._steps < time.final)):
            self._choose(time.share(self._steps))
        chosen = read([flags.any()[None] for flags in self._chosen])
        one_by_one = all(questions.on_host(flags.device) for flags in self._chosen)
        for wave in waves(self._families):
            steps = [self._shrink(index, self._families[index]) for index in wave if chosen[index]]
            if one_by_one:
                for step in steps:
                    answered(step)
            else:
                answered_together(steps)

    def notes(self) -> list[str]:
        if self.bounds is None:
            return []
        most = ", ".join(f"{name} {100 * bound:g} %" for name, bound in self.bounds.most.items())
        marks = self.bounds.marks
        return [
            f"at most lost on held-out data: {most}; measured after step {marks[0]} and {len(marks) - 1} times up to step"
            f" {marks[-1]}. Where more would be lost, shrinking stops short of its target"
        ]

    def report(self) -> dict[str, Any]:
        known = super().report()
        return known if self.bounds is None else {**known, "bounds": self.bounds.report()}

    def foresee(self) -> list[Flags]:
        costs = self._whole if self._whole is not None else self.target.channel_costs(self.groups.whole())
        return self.target.by_magnitude(self._weighed(costs))

    def removed(self) -> float:
        """The share of the target's measure that surgery can remove now."""
        return self.target.removed(self._keep())

    def cut(self, kept: Kept) -> None:
        self._snapshot.cut(kept)

    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        self._bind(groups)
        self.tasks.shrink_to(self._importance.valued, survivors)
        self.target.bind(groups)
        for vectors in self._vectors().values():
            vectors[:] = [v[index.to(v.device)] for v, index in zip(vectors, survivors, strict=True)]
        if self._view is not None:
            self.attach(self._view.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Steps done, running importance, chosen and dead groups, what was measured: tensors and plain numbers."""
        state: dict[str, Any] = {
            "steps": self._steps,
            "target": self.target.state_dict(),
            "costs": self._whole,
        }
        for name, values in self._vectors().items():
            state[name] = [value.cpu().clone() for value in values]
        state["tasks"] = self.tasks.state_dict()
        if self.bounds is not None:
            state["bounds"], state["snapshot"] = self.bounds.state_dict(), self._snapshot.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups, or one that lacks something."""
        check_state(state, ("steps",), "selective shrinking")
        if "target" in state:  # checkpoints of earlier versions measured nothing
            check_state(state, ("costs",), "selective shrinking")
            self.target.load_state_dict(state["target"])
            self._whole = state["costs"]
        sizes = [family.size for family in self._families]
        load_vectors(self._vectors(), state, "selective shrinking", sizes)
        if "tasks" in state:  # checkpoints of earlier versions know no tasks
            self.tasks.load_state_dict(state["tasks"])
        if self.bounds is not None:
            check_state(state, ("bounds", "snapshot"), "selective shrinking")
            self.bounds.load_state_dict(state["bounds"])
            self._snapshot.load_state_dict(state["snapshot"], self._families)
        self._steps = int(state["steps"])

    def _vectors(self) -> dict[str, list[Tensor]]:
        vectors = {"importance": self._importance.running, "chosen": self._chosen, "dead": self._dead}
        return vectors if self.bounds is None else {**vectors, "settled": self._settled}

    @torch.no_grad()
    def judge(self, found: Mapping[str, HeldOut], buffers: Mapping[str, Tensor]) -> str:
        """Go on with the values that the tasks have on held-out data now. What happened, in words; empty where all is well.

        `buffers` are the network's by name: a channel that comes back has its norm's running statistics again. Raises
        DataError as `Bounds.measured`, TrainingError where no task was looked at yet.
        """
        bounds = self.bounds
        assert bounds is not None
        if not self.tasks.known:
            raise TrainingError(
                "no task's importance is known, and the tasks' bounds choose by it",
                "hand the losses of all tasks, by name, to look() before each backward pass",
            )
        pending = [flags & ~settled for flags, settled in zip(self._chosen, self._settled, strict=True)]
        count = sum(int(flags.sum()) for flags in pending)
        held = bounds.measured(self._steps, found, self._gone())
        said = "" if held else f"step {self._steps}: {'; '.join(bounds.broken)}"
        if not held:
            if count:
                self._snapshot.put_back(self._families, pending, self._view, buffers)
                for dead, flags in zip(self._dead, pending, strict=True):
                    dead &= ~flags
                bounds.went_back()
                said += f": {count} channels are put back"
            elif self._steps < self.timetable.end:
                said += ": no channel goes until it has recovered"
        elif count:
            bounds.went_on()
        for settled, chosen, dead in zip(self._settled, self._chosen, self._dead, strict=True):
            settled.copy_(dead)
            chosen.copy_(dead)
        bounds.gone = self._gone()
        if bounds.failed >= TRIES or self._steps >= self.timetable.end:
            bounds.stopped = self._steps
            if said:
                said += f"; shrinking ends with {100 * self.removed():.1f} % of the {MEASURES[self.target.config.measure]} gone"
        elif held:
            self._snapshot.take(self._families, self._view, buffers)
            due = self.timetable.share(bounds.next_after(self._steps))
            self._choose(bounds.target(bounds.gone, due))
        return said

    def _gone(self) -> float:
        """The share of the target that is gone."""
        return min(max(self.removed() / self.target.reduction, 0.0), 1.0)

    def _keep(self) -> list[Flags]:
        return [~flags for flags in as_flags(self._dead)]

    def _choose(self, share: float) -> None:
        remaining = [~flags for flags in as_flags(self._chosen)]
        costs = self._whole if self._whole is not None else self.target.channel_costs(remaining)
        worth, dead, weighed = self._worth(), as_flags(self._dead), self._weighed(costs)
        chosen = self.target.checked(lambda: self.target.choose(worth, dead, weighed, share), share)
        fresh = []
        for old, flags in zip(self._chosen, chosen, strict=True):
            new = torch.from_numpy(flags).to(old.device)
            fresh.append(new & ~old)
            old.copy_(new)
        self.tasks.chosen(fresh)

    def _weighed(self, costs: Sequence[float]) -> list[float]:
        return [cost**self.config.cost_power if cost > 0 else 0.0 for cost in costs]

    def _worth(self) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        worth = self._importance.worth()
        if self.bounds is None:
            return worth
        return [one * tilt for one, tilt in zip(worth, self.tasks.tilt(self.bounds.rooms()), strict=True)]

    def _shrink(self, index: int, family: BoundFamily) -> Asking[None]:
        chosen, dead = self._chosen[index], self._dead[index]
        scored = self._scored[index]
        norms = add(s.squares(at_least_float32(s.parameter)) for s in scored).sqrt()
        last = self.timetable.end if self.bounds is None else self.bounds.gone_by(self._steps)
        remaining = max(last - self._steps + 1, 1)
        thresholds = torch.clamp_min(norms / remaining, self.config.threshold)
        gone = yield from prox_asking(scored, torch.where(chosen, thresholds, 0.0))
        fresh = gone & chosen & ~dead
        dead |= gone & chosen
        (some_fresh,) = yield fresh.any()[None]
        for s in family.tensors:
            s.zero_(s.parameter, dead)
            if self._view is not None and some_fresh:
                self._view.forget(s, fresh)


def _zeros(family: BoundFamily) -> Tensor:
    return torch.zeros(family.size, dtype=torch.bool, device=family.tensors[0].parameter.device)
