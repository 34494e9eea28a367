"""What a loop of one's own asks for, as a recipe's section `sparsity`, and whether model, optimizer and inputs fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from compactmtl.backends import get_backend, load_target
from compactmtl.config.lookup import name_hint
from compactmtl.config.sparsity import (
    ControllerConfig,
    PruneConfig,
    ReductionConfig,
    SelectiveConfig,
    SparsityConfig,
)
from compactmtl.config.validate import validate_options
from compactmtl.config.words import naming
from compactmtl.errors import ConfigError
from compactmtl.graph.inputs import tensors_in
from compactmtl.sparsity import LatencyTable
from compactmtl.surgery.plan import signature

# what decides -> the section of a recipe, and the values that it implies there
METHODS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "selective": ("selective", {}),
    "controller": ("controller", {}),
    "magnitude": ("prune", {"method": "magnitude"}),
    "group_norm": ("prune", {"method": "group_norm"}),
    "taylor": ("prune", {"method": "taylor"}),
}
_SECTIONS: Mapping[str, type[ReductionConfig]] = {
    "selective": SelectiveConfig,
    "controller": ControllerConfig,
    "prune": PruneConfig,
}
DEFAULT = "selective"
_ARGUMENTS: Mapping[str, str] = {"surgery.align": "align", "train.epochs": "total_steps"}
LATENCY = ("latency_ms", "speedup")
BUDGETS = ("mac_reduction", "parameter_reduction", *LATENCY)


def section_of(
    method: str | None,
    strength: float | None,
    budget: Mapping[str, float | None],
    target: str | None,
    table: LatencyTable | None,
    options: Mapping[str, Any],
) -> SparsityConfig:
    """The section `sparsity` of a recipe that says the same. `budget` has a value for each of `BUDGETS`.

    Raises ConfigError, naming the argument, where arguments contradict each other or an option is unknown.
    """
    given = {name: value for name, value in budget.items() if value is not None}
    if options.get("norm_batches") is not None:
        raise ConfigError(
            "norm_batches: a loop of one's own has its batches itself",
            "estimate the norms with torch.optim.swa_utils.update_bn(loader, model) after end_epoch()",
        )
    if strength is not None:
        if given:
            raise ConfigError(
                f"strength is a λ without a target, and {next(iter(given))} is a target",
                "give one of them; method='controller' finds the λ of a target",
            )
        for argument, value in (("method", method), ("table", table)):
            if value is not None:
                raise ConfigError(
                    f"strength is a λ without a target, and {argument} is of a budget",
                    f"leave out {argument}, or give a budget in place of strength: {', '.join(BUDGETS)}",
                )
        _check_known(options, {})
        return _validated({"scope": "model", **options, "strength": strength})
    method = DEFAULT if method is None else method
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}", f"the methods are {', '.join(METHODS)}")
    name, implied = METHODS[method]
    fields = {key: value for key, value in _SECTIONS[name].model_fields.items() if key not in implied}
    _check_known(options, fields)
    if len(given) != 1:
        raise ConfigError(
            f"give exactly one budget of {', '.join(BUDGETS)}, or strength; found {' and '.join(given) or 'none'}",
            "for example Shrinking(model, optimizer, inputs, total_steps=1000, mac_reduction=0.7)",
        )
    ((what, amount),) = given.items()
    if table is not None and what not in LATENCY:
        raise ConfigError(
            f"table says what layers take in milliseconds, and {what} does not ask for those",
            f"leave out table, or give {' or '.join(LATENCY)} in place of {what}",
        )
    section = {
        **implied,
        **{key: value for key, value in options.items() if key in fields},
        **_reduction(what, amount, target, table),
    }
    rest = {key: value for key, value in options.items() if key not in fields}
    return _validated({"scope": "model", **rest, name: section})


def _reduction(what: str, amount: float, target: str | None, table: LatencyTable | None) -> dict[str, Any]:
    """A budget as a method's section has it."""
    if what not in LATENCY:
        return {what: amount}
    if target is None and table is None:
        raise ConfigError(
            f"{what} needs the target that it is of", "give target='onnxruntime-cpu', or a table"
        )
    measured_on = target or (table.target if table else None)
    return {"latency": {"ms" if what == "latency_ms" else what: amount, "target": measured_on}}


def _validated(section: Mapping[str, Any]) -> SparsityConfig:
    with in_own_words():
        return validate_options(SparsityConfig, section, "")


def _check_known(options: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Whether all are keys of the section, or `fields` of the method in it, that no argument stands for."""
    arguments = {*_SECTIONS, *BUDGETS, "strength", "latency"}
    known = [key for key in (*fields, *SparsityConfig.model_fields) if key not in arguments]
    for key in options:
        if key not in known:
            raise ConfigError(f"there is no option {key!r} here", name_hint(key, [*known, *BUDGETS]))


def in_own_words() -> AbstractContextManager[None]:
    """Let errors name arguments, where they name keys of a recipe."""
    return naming(_argument)


def _argument(dotted: str) -> str:
    """The argument or option that a key of a recipe stands for."""
    if dotted in _ARGUMENTS:
        return _ARGUMENTS[dotted]
    parts = dotted.removeprefix("sparsity.").split(".")
    if len(parts) > 1 and parts[0] in _SECTIONS:
        parts = parts[1:]
    if parts[0] == "latency" and len(parts) > 1:
        parts = ["latency_ms"] if parts[1:] == ["ms"] else parts[1:]
    return ".".join(parts)


def plain_module(model: nn.Module) -> nn.Module:
    """The network itself of one that `torch.compile` wraps. Raises ConfigError for a wrapper of several processes."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise ConfigError(
            f"the model is a {type(model).__name__}, whose buckets do not follow parameters that change",
            "shrink on one device: hand in model.module and train that",
        )
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer of one that Accelerate or Lightning wraps."""
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer


def check(model: nn.Module, optimizer: Optimizer, inputs: tuple[Any, ...], total_steps: int) -> None:
    """Whether these belong together. Raises ConfigError, which names the first thing that does not fit."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise ConfigError(
            f"total_steps is {total_steps!r}", "give the number of optimizer steps of the whole training"
        )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"the optimizer is a {type(optimizer).__name__}",
            "give a torch.optim optimizer of the model's parameters",
        )
    _one_device(model, inputs)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError(
            "no parameter of the model trains, so there is nothing to shrink",
            "set requires_grad on what is to train, before the optimizer is built",
        )
    steps = {id(p) for group in optimizer.param_groups for p in group["params"]}
    held = [name for name, p in trained.items() if id(p) in steps]
    if not held:
        raise ConfigError(
            f"none of the optimizer's {len(steps)} parameters is one of the model's {len(trained)}",
            "build the optimizer from this very model: model.parameters(), not those of a copy or of an average",
        )


def _one_device(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    where: dict[torch.device, str] = {}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        where.setdefault(value.device, name)
    if len(where) > 1:
        (one, first), (other, second) = list(where.items())[:2]
        raise ConfigError(
            f"the model lies on several devices: {first} on {one}, {second} on {other}",
            "shrinking needs a model on one device: model.to(device)",
        )
    for device, name in where.items():
        for index, value in enumerate(tensors_in(list(inputs))):
            if value.device != device:
                raise ConfigError(
                    f"example input {index} is on {value.device}, the model ({name}) on {device}",
                    "move the example inputs to the model's device",
                )


def check_averages(averages: Sequence[AveragedModel], model: nn.Module) -> None:
    """Whether these are averages of `model`. Raises ConfigError naming the first that is not."""
    for index, average in enumerate(averages):
        if signature(average.module) != signature(model):
            raise ConfigError(
                f"average {index} is of another network: names or shapes differ",
                "build it from this model, as AveragedModel(model), before channels are removed",
            )


def check_average(average: AveragedModel | None, averages: Sequence[AveragedModel]) -> None:
    """Whether the average that `finish` was given is one of those of the start. Raises ConfigError."""
    if average is not None and all(average is not one for one in averages):
        raise ConfigError(
            "finish() was given an average that does not belong to this shrinking",
            "hand it in at the start: Shrinking(…, averages=average)",
        )


def align_of(target: str | None) -> int:
    """The multiple of channels that a target runs best; 1 without one."""
    if target is None:
        return 1
    loaded = load_target(target)
    return get_backend(loaded.backend).channel_step(loaded)
