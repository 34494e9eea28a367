"""What each channel is worth to each task: one backward pass a task now and then, kept as a running mean.

A task's importance of a channel group is |Σ w·∂L/∂w| over the group's tensors with L the loss of that task alone, or its
square: the first-order change of the loss where the group is zeroed. Source: arXiv:1906.10771, method TE, for each task.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.distributed.sums import averaged, is_joined
from compactmtl.errors import ArtifactError, TrainingError
from compactmtl.sparsity.bounds import LEAST_ROOM
from compactmtl.sparsity.grouped_tensor import GroupedTensor, add, at_least_float32, to_host
from compactmtl.sparsity.saved import RESUME, check_state

# Steps between two looks, for each task. A look needs the gradients of norms alone, about a third of a step for each task:
# 2 % of the time with 20 steps, 5 % with 7, which short trainings need to know anything when channels begin to go.
STEPS_PER_TASK, FEWEST_PER_TASK = 20, 7
LOOKS = 100  # in a training of that length or more
MEMORY = 0.8  # of the exponential mean over looks: the last five count most
TINY = 1e-30


class TaskImportance:
    """Running importance of channel groups for each task, and what it was of groups when they were chosen to go.

    Tasks are known from the first look on. `shares` are comparable between tasks: of each task's importance in all groups
    together.
    """

    def __init__(
        self,
        scored: Sequence[Sequence[GroupedTensor]],
        sizes: Sequence[int],
        every: int | None,
        *,
        steps: int = 0,
        squared: bool = False,
        alone: bool = False,
    ) -> None:
        """`scored` are the tensors, one sequence a family of `sizes` groups; a branch, one group, has those of its channels. `every` steps there is a look; None: a
        hundred looks in a training of `steps`, between 7 and 20 steps for each task; 0: never. `squared` takes the mean of squares, and its root. A single task is looked at where it may be `alone`.
        """
        self._every, self._steps = every, steps
        self._squared, self._alone = squared, alone
        self._sizes = list(sizes)
        self._places = [
            torch.arange(size) for size in sizes
        ]  # of the groups that are left, among those at first
        self.tasks: tuple[str, ...] = ()
        self._running: list[Tensor] = []  # (T, n) a family
        self._seen = torch.zeros(0)  # (T,) the weight of the looks in the mean, for its bias
        self._gone: list[Tensor] = []  # (T, n at first) a family: the share when a group was chosen
        self.looks, self.seconds = 0, 0.0
        self._looked: int | None = None
        self.bind(scored)

    def bind(self, scored: Sequence[Sequence[GroupedTensor]]) -> None:
        """Read from these tensors from now on."""
        self._scored = scored

    @property
    def kind(self) -> str:
        """Which importance it is, as recipes name it."""
        return "fisher" if self._squared else "taylor"

    @property
    def known(self) -> bool:
        """Whether there was a look yet."""
        return self.looks > 0

    def due(self, step: int, tasks: int) -> bool:
        """Whether to look at the step that follows `step` steps: once, however often it is computed."""
        every = self._every
        if every is None:
            every = min(max(self._steps // LOOKS, FEWEST_PER_TASK * tasks), STEPS_PER_TASK * tasks)
        return tasks > 1 - self._alone and every > 0 and step % every == 0 and step != self._looked

    def look(self, step: int, losses: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Take each task's gradient from the graph of its loss, which stays. `scale` is a loss scaler's factor.

        A task whose loss has no graph, or whose gradient is zero or not finite everywhere, such as one with nothing known in
        this batch, keeps its mean. Raises TrainingError where the tasks are others than at the look before.
        """
        if not self.tasks:
            self._begin(tuple(losses))
        if set(losses) != set(self.tasks):
            raise TrainingError(
                f"losses of {', '.join(losses)} were given, and of {', '.join(self.tasks)} before",
                "give the loss of every task at every step",
            )
        self._looked = step
        start = _now(self._seen)
        for row, task in enumerate(self.tasks):
            loss = losses[task]
            if loss.requires_grad:
                self._learn(row, self._worth(loss * scale, scale))
        self.looks += 1
        self.seconds += _now(self._seen) - start

    def _begin(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks
        firsts = [at_least_float32(scored[0].parameter.detach()) for scored in self._scored]
        self._running = [
            one.new_zeros(len(tasks), len(places)) for places, one in zip(self._places, firsts, strict=True)
        ]
        self._seen = firsts[0].new_zeros(len(tasks))
        self._gone = [torch.zeros(len(tasks), size, dtype=torch.float64) for size in self._sizes]

    def _worth(self, loss: Tensor, scale: float) -> list[Tensor]:
        """The importance of each group by one loss, (n,) a family."""
        parameters = list({id(s.parameter): s.parameter for scored in self._scored for s in scored}.values())
        with torch.enable_grad():
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if is_joined():
            pairs = zip(found, parameters, strict=True)
            found = tuple(averaged([torch.zeros_like(p) if g is None else g for g, p in pairs]))
        gradients = dict(zip(map(id, parameters), found, strict=True))
        worth = []
        with torch.no_grad():
            for scored, places in zip(self._scored, self._places, strict=True):
                terms = []
                for s in scored:
                    gradient = gradients[id(s.parameter)]
                    value = at_least_float32(s.parameter.detach())
                    product = (
                        torch.zeros_like(value) if gradient is None else value * (gradient.to(value) / scale)
                    )
                    terms.append(s.sums(product))
                total = add(terms).abs()
                if len(total) != len(places):  # a branch: what its channels are worth one by one
                    total = total.sum()[None]
                worth.append(total.square() if self._squared else total)
        return worth

    @torch.no_grad()
    def _learn(self, row: int, worth: Sequence[Tensor]) -> None:
        device = self._seen.device
        total = torch.stack([one.sum().to(device) for one in worth]).sum()
        learned = torch.isfinite(total) & (total > 0)
        for running, one in zip(self._running, worth, strict=True):
            blend = MEMORY * running[row] + (1 - MEMORY) * one.to(running)
            running[row] = torch.where(learned.to(running.device), blend, running[row])
        self._seen[row] = torch.where(learned, MEMORY * self._seen[row] + 1 - MEMORY, self._seen[row])

    @torch.no_grad()
    def importance(self) -> list[Tensor]:
        """The mean importance, (T, n) a family; 0 for a task of which nothing was seen."""
        weight = self._seen.clamp_min(TINY)[:, None]
        values = [running / weight.to(running.device) for running in self._running]
        return [value.sqrt() for value in values] if self._squared else values

    def shares(self) -> list[Tensor]:
        """The importance as a share of the task's in all groups together, (T, n) a family."""
        values = self.importance()
        total = add(value.sum(1) for value in values).clamp_min(TINY)[:, None]
        return [value / total.to(value.device) for value in values]

    def tilt(self, rooms: Mapping[str, float]) -> list[NDArray[np.float64]]:
        """How much more each group counts than it would without bounds, from 1 to 10, (n,) a family.

        It is the mean of 1 / room over the tasks, each with its part of the group's shares: 1 where every task has all its room,
        10 for a group that serves a task without room alone. `rooms` are from 0 to 1; a task that is not named has all.
        A group in which no task was seen to have a share counts as if all had the same.
        """
        factors = [1 / max(rooms.get(task, 1.0), LEAST_ROOM) for task in self.tasks]
        weights = torch.tensor(factors, dtype=torch.float64)[:, None]
        tilted = []
        for share in self.shares():
            part = share.double() + TINY
            tilted.append((part / part.sum(0) * weights.to(part.device)).sum(0))
        return to_host(tilted)

    def chosen(self, fresh: Sequence[Tensor]) -> None:
        """Note what the groups that were just chosen to go, bool (n,) a family, are worth now: soon they are small."""
        if not self.known:
            return
        for gone, share, flags, places in zip(self._gone, self.shares(), fresh, self._places, strict=True):
            here = flags.cpu()
            gone[:, places[here]] = share.cpu()[:, here].to(gone)

    def shrink_to(self, scored: Sequence[Sequence[GroupedTensor]], survivors: Sequence[Tensor]) -> None:
        """Go on with the groups `survivors` (indices, one tensor a family) of those before."""
        self.bind(scored)
        self._places = [places[index] for places, index in zip(self._places, survivors, strict=True)]
        self._running = (
            [one[:, index.to(one.device)] for one, index in zip(self._running, survivors, strict=True)]
            if self._running
            else []
        )

    def whole(self, dead: Sequence[Tensor]) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """Of all groups at first: which are gone (n,), and each task's share (T, n), of those that went as it was when they were
        chosen. `dead` flags those that are left in the network at zero. One pair a family.
        """
        found = []
        for gone, share, flags, places in zip(self._gone, self.shares(), dead, self._places, strict=True):
            left = torch.ones(gone.shape[1], dtype=torch.bool)
            left[places] = flags.cpu()
            values = gone.clone()
            alive = ~flags.cpu()
            values[:, places[alive]] = share.cpu()[:, alive].to(values)
            found.append((left.numpy(), values.numpy()))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "tasks": list(self.tasks),
            "running": [one.cpu().clone() for one in self._running],
            "seen": self._seen.cpu().clone(),
            "gone": [one.clone() for one in self._gone],
            "looks": self.looks,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups, or one that lacks something."""
        keys = ("tasks", "running", "seen", "gone", "looks", "seconds")
        check_state(state, keys, "the tasks' importance")
        if state["tasks"]:
            self._begin(tuple(state["tasks"]))
            shapes = [tuple(one.shape) for one in state["running"]]
            if shapes != [tuple(one.shape) for one in self._running]:
                raise ArtifactError("the saved importance for each task is of other channel groups", RESUME)
            for one, saved in zip(self._running, state["running"], strict=True):
                one.copy_(saved)
            self._seen.copy_(state["seen"])
            self._gone = [one.clone() for one in state["gone"]]
        self.looks, self.seconds = int(state["looks"]), float(state["seconds"])


def _now(where: Tensor) -> float:
    """Seconds of a clock, when what was asked of the device is done."""
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
    return time.perf_counter()
