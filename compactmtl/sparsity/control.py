"""What steers zeros while a model trains: the interface of all controls, and a λ that is constant or follows a schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.config.sparsity import StrengthScheduleConfig
from compactmtl.errors import ArtifactError, TrainingError
from compactmtl.graph.space import Flags
from compactmtl.sparsity import questions
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.penalty import Penalty
from compactmtl.sparsity.proximal import ProximalStep
from compactmtl.sparsity.saved import RESUME, check_state
from compactmtl.sparsity.target import Target
from compactmtl.sparsity.task_importance import TaskImportance
from compactmtl.surgery.slice_plan import Kept


class Control(ABC):
    """Brings channel groups to zero while a model trains.

        loss.backward()
        control.observe()
        optimizer.step()
        control.step()

    Steps count from 1.
    """

    groups: ChannelGroups
    target: Target | None = None  # what is to be gone, where that is set
    tasks: TaskImportance | None = None  # what each group is worth to each task, where that is looked at

    @property
    @abstractmethod
    def shrunk(self) -> frozenset[str]:
        """Names of the tensors that the prox acts on; they want no weight decay."""

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether all zeros that are to be are there, so that from now on models compare."""

    @property
    def strength(self) -> float | None:
        """λ of the last step, where there is one."""
        return None

    @property
    @abstractmethod
    def held(self) -> list[Tensor] | None:
        """Groups that are zero for good, bool (n,) a family; none where zeros may come back."""

    @property
    def settled(self) -> list[Tensor] | None:
        """Of `held` the groups that may leave the network: that nothing will put back."""
        return self.held

    @property
    def check_due(self) -> bool:
        """Whether the tasks are to be measured on held-out data now, after `step`, for `judge`."""
        return False

    @property
    def short(self) -> str:
        """Why the target was given up before it was met, in words; empty where it was not."""
        return ""

    @abstractmethod
    def attach(self, optimizer: Optimizer) -> None:
        """Read rates and clear moments in `optimizer`; once, before the first step. Raises as OptimizerView does."""

    def look(self, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Before backward: the loss of each task, with its graph. `scale` is the factor that a loss scaler will apply."""

    def observe(self) -> None:
        """After backward, before gradients are clipped: what is held at zero has no say in their norm."""
        held = self.held
        if held is not None:
            silence(self.groups, held)

    @abstractmethod
    def step(self) -> None:
        """After the optimizer's step."""

    def foresee(self) -> list[Flags] | None:
        """The groups that would go to meet the target if the size of the weights as they are now decided, a bool array
        (n,) a family; None where no target is set, so that nothing is known before training.
        """
        return None

    def notes(self) -> list[str]:
        """What a user should know before training, in lines."""
        return []

    def report(self) -> dict[str, Any]:
        """For a log, beside what is told of all controls."""
        if self.tasks is None or not self.tasks.known:
            return {}
        return {"task_importance": {"looks": self.tasks.looks, "seconds": self.tasks.seconds}}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups, or one that lacks something."""

    def cut(self, kept: Kept) -> None:
        """The network was cut: what is held of its tensors goes with them. `shrink_to` follows."""

    @abstractmethod
    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        """Go on with `groups`, which are the groups `survivors` (indices, one tensor a family) of those before.

        The optimizer's parameters are replaced by then.
        """


@torch.no_grad()
def silence(groups: ChannelGroups, flags: Sequence[Tensor]) -> None:
    """Set the gradients of the flagged groups, bool (n,) a family, to zero."""
    for family, dead in zip(groups.bound, flags, strict=True):
        # elsewhere asking costs more than a pass over the gradient
        if not questions.on_host(dead.device) or bool(dead.any()):
            for s in family.tensors:
                if s.parameter.grad is not None:
                    s.zero_(s.parameter.grad, dead)


class StrengthSchedule(Control):
    """A penalty's proximal step with a λ that is constant or follows a schedule, after a warm-up without one."""

    def __init__(
        self,
        penalty: Penalty,
        total_steps: int,
        warmup: float = 0.05,
        schedule: StrengthScheduleConfig | None = None,
    ) -> None:
        """`penalty.strength` is the whole λ; `warmup` a share of `total_steps`."""
        self.groups = penalty.groups
        self.penalty = penalty
        self.whole = penalty.strength
        self._schedule = schedule
        self._first = round(warmup * total_steps)
        self._full = round(schedule.full * total_steps) if schedule else self._first
        self._release = round(schedule.release * total_steps) if schedule else total_steps + 1
        self._steps = 0
        self._proximal: ProximalStep | None = None

    @property
    def shrunk(self) -> frozenset[str]:
        return self.groups.parameter_names

    @property
    def reached(self) -> bool:
        release = self._schedule is not None and self._schedule.release < 1
        return self._steps > self._first if not release else self._steps >= self._release

    @property
    def strength(self) -> float:
        return self.at(self._steps)

    @property
    def held(self) -> list[Tensor] | None:
        if self._steps < self._release or self._proximal is None:
            return None
        return self._proximal.dead

    def at(self, step: int) -> float:
        """λ of step number `step`, counted from 1."""
        if step <= self._first or step > self._release:
            return 0.0
        if self._schedule is None or step >= self._full:
            return self.whole
        progress = (step - self._first) / max(self._full - self._first, 1)
        if self._schedule.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        elif self._schedule.shape == "exponential":
            progress = 1000.0 ** (progress - 1)
        return self.whole * progress

    def attach(self, optimizer: Optimizer) -> None:
        self._proximal = ProximalStep(optimizer, self.penalty)

    def step(self) -> None:
        proximal = attached(self._proximal)
        self._steps += 1
        if self._steps > self._release:
            proximal.hold()
            return
        self.penalty.strength = self.strength
        proximal.step()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, **attached(self._proximal).state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state(state, ("steps",), "a λ")
        attached(self._proximal).load_state_dict(dict(state))
        self._steps = int(state["steps"])

    def shrink_to(self, groups: ChannelGroups, survivors: Sequence[Tensor]) -> None:
        self.groups = self.penalty.groups = groups
        self._proximal = attached(self._proximal).rebuilt()


def attached(proximal: ProximalStep | None) -> ProximalStep:
    """The proximal step. Raises TrainingError before `attach`."""
    if proximal is None:
        raise TrainingError(
            "the control has no optimizer yet", "call attach(optimizer) before the first step"
        )
    return proximal


def load_vectors(
    vectors: Mapping[str, Sequence[Tensor]], state: Mapping[str, Any], what: str, sizes: Sequence[int]
) -> None:
    """Copy saved vectors, one a family, over the live ones. Raises ArtifactError for those of other groups."""
    for name, values in vectors.items():
        if name not in state or [len(value) for value in state[name]] != list(sizes):
            raise ArtifactError(f"the saved state of {what} is of other channel groups", RESUME)
        for value, saved in zip(values, state[name], strict=True):
            value.copy_(saved)
