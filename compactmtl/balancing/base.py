"""What a balancer is, and the choice of one by name."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.tasks.base import Task


class Balancer(nn.Module):
    """Combines task losses. Its parameters, where it has any, belong into the optimizer.

    `weights` and `kinds` map each task to its recipe weight and its kind (see `balancer`).
    """

    def __init__(self, weights: Mapping[str, float], kinds: Mapping[str, str]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.kinds = dict(kinds)

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimize, of one scalar loss for each task.

        Raises ConfigError where the tasks of `losses` are not those of the balancer.
        """
        if losses.keys() != self.weights.keys():
            raise ConfigError(
                f"losses of {', '.join(sorted(losses))} cannot be combined by a balancer of"
                f" {', '.join(sorted(self.weights))}",
                "give one loss for each task",
            )
        return self._combine(losses)

    @abstractmethod
    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor: ...

    def log(self) -> dict[str, float]:
        """The factor by which each task's loss counts now."""
        return dict(self.weights)


def balancer(name: str, tasks: Sequence[str] | Mapping[str, Task] | Mapping[str, float]) -> Balancer:
    """The balancer `name` ("equal" or "uncertainty") for these tasks.

    `tasks` are names (all of weight 1), weights by name, or the tasks themselves, whose `weight` and
    `kind` are read. Raises ConfigError for an unknown name, no task at all, or a negative weight.
    """
    from compactmtl.balancing.equal import Equal
    from compactmtl.balancing.uncertainty import Uncertainty

    known: dict[str, type[Balancer]] = {"equal": Equal, "uncertainty": Uncertainty}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"unknown balancing {name!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
        )
    weights: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for task in tasks:
        value = tasks[task] if isinstance(tasks, Mapping) else 1.0
        weights[task] = float(value) if isinstance(value, int | float) else value.weight
        kinds[task] = "" if isinstance(value, int | float) else value.kind
    if not weights:
        raise ConfigError("balancing needs at least one task")
    if negative := [task for task, weight in weights.items() if not weight >= 0]:
        raise ConfigError(f"the weight of task {negative[0]} is {weights[negative[0]]}", "weights are >= 0")
    return known[name](weights, kinds)
