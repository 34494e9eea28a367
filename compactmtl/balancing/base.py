"""What a balancer is: from one loss for each task to the one scalar, or the one gradient, that is followed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compactmtl.balancing.jacobian import at_least_float32
from compactmtl.balancing.options import method_options
from compactmtl.config.schema import Frozen, NoOptions
from compactmtl.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class TaskInfo:
    """What a balancer reads of a task: the weight of its loss, and its constant in uncertainty weighting."""

    weight: float = 1.0
    uncertainty_scale: float = 1.0  # 1/2 for a real quantity, whose likelihood is Gaussian, and 1 for a class


class Balancer(nn.Module):
    """Combines task losses. Its parameters, where it has any, belong into the optimizer; its state_dict holds all that
    a resumed run needs.

    Each method is one class in one file of `balancing/methods`, whose name is the value of `balancing.name`. `Options`
    are those of `balancing.options`. `weights` maps each task to its recipe weight.

    Raises ConfigError for options that do not fit.
    """

    Options: ClassVar[type[Frozen]] = NoOptions
    options: Frozen
    relooks: ClassVar[bool] = False  # whether `after_step` must be called

    def __init__(self, tasks: Mapping[str, TaskInfo], options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.weights = {task: info.weight for task, info in tasks.items()}
        self.options = method_options(self.name, self.Options, self.weights, options or {})
        self.loss_scale = 1.0  # of backward, where half precision scales the loss

    @property
    def name(self) -> str:
        """The method's name in recipes: its file's."""
        return type(self).__module__.rpartition(".")[2]

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimize, of one scalar loss for each task.

        Raises ConfigError where the tasks of `losses` are not those of the balancer.
        """
        self._check_tasks(losses)
        return self._combine(losses)

    @abstractmethod
    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor: ...

    def _check_tasks(self, losses: Mapping[str, Tensor]) -> None:
        if losses.keys() != self.weights.keys():
            raise ConfigError(
                f"losses of {', '.join(sorted(losses))} cannot be combined by a balancer of"
                f" {', '.join(sorted(self.weights))}",
                "give one loss for each task",
            )

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Each loss times its task's weight, float32 or wider (T,), in the order of the tasks.

        float32 at least: under autocast a half-precision sum would round small losses away.
        """
        return torch.stack(
            [
                weight * losses[task].to(at_least_float32(losses[task].dtype))
                for task, weight in self.weights.items()
            ]
        )

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Learn from the losses of the same batch after the optimizer's step; see `relooks`."""

    def end_epoch(self) -> None:
        """Learn from an epoch that has ended."""

    def log(self) -> dict[str, float]:
        """The factor by which each task's loss counts now."""
        return dict(self.weights)


def check_positive(
    name: str, values: Tensor, tasks: Mapping[str, float], least: Sequence[float] | None = None
) -> None:
    """Whether methods that take the logarithm of each loss, less `least`, can: TrainingError names the first task that they can't."""
    for index, (task, value) in enumerate(zip(tasks, values.tolist(), strict=True)):
        bound = least[index] if least is not None else 0.0
        if value > bound:
            continue
        if math.isnan(value):
            raise TrainingError(
                f"the loss of task {task!r} is nan", "lower train.optimizer.lr, or set train.clip"
            )
        if bound != 0:
            raise TrainingError(
                f"balancing {name} takes the logarithm of each loss less its least: that of task {task!r} is {value:g}, and "
                f"its balancing.options.least is {bound:g}",
                "lower balancing.options.least",
            )
        if value < 0:
            raise TrainingError(
                f"balancing {name} takes the logarithm of each loss, and that of task {task!r} is {value:g}",
                "choose another loss for the task, or another balancing.name",
            )
        raise TrainingError(
            f"balancing {name} takes the logarithm of each loss, and that of task {task!r} is 0: no image of the batch has "
            "a known label of it, or all are fitted exactly",
            "take larger batches (data.batch_size), so that each has a label of every task, leave images without one out, "
            "or choose another balancing.name",
        )
