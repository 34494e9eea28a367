"""From the name of a balancing method to its class: one file of `balancing/methods`, imported when it is asked for.

TorchJD loads every solver that is installed, so that methods which need it are not imported before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from compactmtl.balancing.base import Balancer, TaskInfo
from compactmtl.balancing.gradient import At, GradientBalancer
from compactmtl.config.registry import class_in, file_names
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import Task

FOLDER = "balancing/methods"
NAMES: tuple[str, ...] = file_names(FOLDER)


def balancer_class(name: str) -> type[Balancer]:
    """The class of a method, one of NAMES. Raises ConfigError for another name."""
    return class_in(FOLDER, name, _is_balancer, "balancing.name", "method")


def balancer(
    name: str,
    tasks: Sequence[str] | Mapping[str, Task] | Mapping[str, float],
    *,
    at: At | None = None,
    options: Mapping[str, Any] | None = None,
) -> Balancer:
    """The balancer `name` for these tasks; `balancing.NAMES` lists the names, docs/balancing.md what they do.

    `tasks` are names (all of weight 1), weights by name, or the tasks themselves, whose `weight` and
    `uncertainty_scale` are read.
    `at` says where task gradients are compared, for methods that compare them: "shared_parameters" by default.

    Raises ConfigError for an unknown name or option, no task at all, a negative weight, or `at` given to a method of
    losses; MissingDependencyError where the method needs a package that is not installed.
    """
    kind = balancer_class(name)
    infos = _infos(tasks)
    if issubclass(kind, GradientBalancer):
        return kind(infos, options or {}, at or "shared_parameters")
    method = kind(infos, options or {})
    if at is not None:
        raise ConfigError(
            f"balancing.at: {name} weighs losses and compares no gradients",
            "remove at, or choose a method of gradients",
        )
    return method


def _infos(tasks: Sequence[str] | Mapping[str, Task] | Mapping[str, float]) -> dict[str, TaskInfo]:
    """What a balancer reads of each task. Raises ConfigError where there is none or a weight is negative."""
    infos = {}
    for task in tasks:
        value = tasks[task] if isinstance(tasks, Mapping) else 1.0
        if isinstance(value, int | float):
            infos[task] = TaskInfo(float(value))
        else:
            infos[task] = TaskInfo(value.weight, value.uncertainty_scale)
    if not infos:
        raise ConfigError("balancing needs at least one task")
    if negative := [task for task, info in infos.items() if not info.weight >= 0]:
        raise ConfigError(
            f"the weight of task {negative[0]} is {infos[negative[0]].weight}", "weights are >= 0"
        )
    return infos


def _is_balancer(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Balancer)
