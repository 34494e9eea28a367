"""The choice of a balancer by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from compactmtl.balancing.base import Balancer, NoOptions
from compactmtl.balancing.db_mtl import DBMTL
from compactmtl.balancing.equal import Equal
from compactmtl.balancing.gradient import GradientBalancer
from compactmtl.balancing.gradnorm import GradNorm
from compactmtl.balancing.nash import NashMTL
from compactmtl.balancing.uncertainty import Uncertainty
from compactmtl.config.balancing import BalancerName
from compactmtl.config.validate import validate_options
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import Task

At = Literal["features", "shared_parameters"]

NAMES: tuple[str, ...] = get_args(BalancerName)
_OF_LOSSES: Mapping[str, type[Balancer]] = {"equal": Equal, "uncertainty": Uncertainty}
_OF_GRADIENTS: Mapping[str, type[GradNorm] | type[DBMTL] | type[NashMTL]] = {
    "gradnorm": GradNorm,
    "db_mtl": DBMTL,
    "nash_mtl": NashMTL,
}


def balancer(
    name: str,
    tasks: Sequence[str] | Mapping[str, Task] | Mapping[str, float],
    *,
    at: At | None = None,
    options: Mapping[str, Any] | None = None,
) -> Balancer:
    """Build a balancing method by name. `compactmtl.balancing.NAMES` lists the names.

    Args:
        name: the method, such as "equal", "uncertainty", "pcgrad" or "mgda".
        tasks: task names (all of weight 1), a mapping of names to weights, or a mapping of names to tasks.
        at: where the gradients of the tasks are compared, for methods that compare them: at the encoder's output
            ("features") or at its parameters ("shared_parameters", the default).
        options: options of the method, as in a recipe's `balancing.options`.

    Raises:
        ConfigError: for an unknown name or option, no task, a negative weight, or `at` with a method that compares no
            gradients.
        MissingDependencyError: where the method needs a package that is not installed.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise ConfigError(
            f"unknown balancing {name!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(NAMES)}",
        )
    weights, kinds = _weights(tasks)
    given = dict(options or {})
    found: Balancer
    if name in _OF_LOSSES:
        validate_options(NoOptions, given, "balancing.options")
        found = _OF_LOSSES[name](weights, kinds)
    elif name in _OF_GRADIENTS:
        found = _OF_GRADIENTS[name](weights, kinds, given, at or "shared_parameters")
    else:
        found = _torchjd(name, weights, kinds, given, at)
    if at is not None and not isinstance(found, GradientBalancer):
        raise ConfigError(
            f"balancing.at: {name} weighs losses and compares no gradients",
            "remove at, or choose a method of gradients",
        )
    return found


def _torchjd(
    name: str,
    weights: Mapping[str, float],
    kinds: Mapping[str, str],
    options: Mapping[str, Any],
    at: At | None,
) -> Balancer:
    # TorchJD loads every solver that is installed: only where it is asked for
    from compactmtl.balancing.aggregators import AGGREGATORS, Aggregated
    from compactmtl.balancing.scalarizers import SCALARIZERS

    if name in SCALARIZERS:
        return SCALARIZERS[name](weights, kinds, options)
    return Aggregated(AGGREGATORS[name], weights, kinds, options, at or "shared_parameters")


def _weights(
    tasks: Sequence[str] | Mapping[str, Task] | Mapping[str, float],
) -> tuple[dict[str, float], dict[str, str]]:
    """Weight and kind of each task. Raises ConfigError where there is none or a weight is negative."""
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
    return weights, kinds
