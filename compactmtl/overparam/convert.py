"""Turn a model's layers into their training form and back. Source: arXiv:2308.13300."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeVar, get_args

from torch import nn

from compactmtl.errors import CompactError, ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.models.features import encoder_of, task_names
from compactmtl.overparam.check_contraction import check_contraction
from compactmtl.overparam.kinds import (
    DIAGONAL,
    Kind,
    Rank,
    as_rank,
    build_layer,
    check_kind,
    check_rank,
    full_rank,
    takes,
)
from compactmtl.overparam.layer import Evaluation, OverparamLayer
from compactmtl.overparam.per_task import split_encoder

Model = TypeVar("Model", bound=nn.Module)


def overparameterize(
    model: Model,
    kind: Kind = "svd",
    rank: Rank = "full",
    scope: Literal["encoder", "model"] = "encoder",
    exclude: Sequence[str] = (),
    *,
    tasks: Sequence[str] = (),
    per_task: bool = False,
    depthwise: bool = False,
    evaluation: Evaluation = "auto",
    initialize: bool = True,
) -> Model:
    """Return a copy of `model` whose convolutions and linear layers are factorized for training.

    Layers of exactly the types nn.Conv2d and nn.Linear are factorized. A module that is used twice stays one module.

    Args:
        model: a model on any device. On the meta device the factors have no values, so that a checkpoint can be loaded.
        kind: form of the factors: `svd` (U·M·V, the paper's), `cp` or `tucker`; `expandnet_cl`, `expandnet_ck` and
            `repvgg` are baselines; `none` leaves every layer plain.
        rank: "full" keeps the function to float tolerance. An int limits the rank of every layer, and a float in (0, 1]
            reduces it to that share of the full rank; both start at an approximation. A float above 1 is a multiple of
            the full rank. For ExpandNets a float of at least 1 is the expansion rate.
        scope: "encoder" factorizes the layers of `model.encoder`, or all layers of a model without that attribute.
            "model" factorizes all layers.
        exclude: glob patterns of layer names that stay plain.
        tasks: tasks that have a diagonal of their own in every layer (svd, cp, tucker). By default all share one.
        per_task: give each of `tasks` a weight of its own, U·M(t)·V, and therefore an encoder pass of its own. By default
            the diagonals are multiplied and there is one weight.
        depthwise: factorize depthwise convolutions too.
        evaluation: "contract" multiplies the factors and convolves once, "sequence" convolves with one factor after the
            other, "auto" takes the cheaper one.
        initialize: False leaves the factors at zero, for factors that are about to be loaded.

    Raises:
        ConfigError: for an unknown kind, scope or task, a rank out of range, weights that are not finite or are shared
            between layers, a pattern that matches no layer, and a model without a layer to factorize.
    """
    check_kind(kind)
    rank = as_rank(rank)
    inside = in_scope(model, scope)
    for key, value in (("exclude", exclude), ("tasks", tasks)):
        if isinstance(value, str):
            raise ConfigError(f"{key} {value!r} is a string", f"give a list: {key}=[{value!r}]")
    if evaluation not in get_args(Evaluation):
        raise ConfigError(f"unknown evaluation {evaluation!r}", f"known: {', '.join(get_args(Evaluation))}")
    if factorized_layers(model):
        raise ConfigError("the model is factorized already", "contract it first")
    _check_tasks(model, kind, tasks, per_task)
    if kind == "none":
        return copy_model(model)
    candidates = {
        name: m for name, m in _named(model) if inside(name) and takes(kind, m, depthwise=depthwise)
    }
    names = _without(candidates, exclude)
    chosen = {id(candidates[name]) for name in names}
    if not chosen:
        raise ConfigError(
            f"no layer to factorize in scope {scope!r}", f"{kind} needs {_NEEDS.get(kind, _NEEDS['svd'])}"
        )
    _reject_tied(model, chosen)
    plain = [m for m in candidates.values() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) in chosen]
    check_rank(kind, rank, max(full_rank(kind, m) for m in plain))
    diagonals = 1 if per_task else max(len(tasks), 1)

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if name not in names or not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        try:
            layer = build_layer(kind, module, rank, diagonals, initialize=initialize)
        except CompactError as error:
            raise type(error)(f"layer {name or '(the model)'}: {error.message}", error.hint) from error
        layer.evaluation = evaluation
        return layer

    trained = _replaced(model, replace)
    if per_task:
        split_encoder(trained, tasks)
    return trained


_NEEDS = {
    "svd": "an nn.Conv2d (not depthwise) or nn.Linear that is not excluded",
    "expandnet_ck": "an nn.Conv2d (not depthwise) with a kernel of more than 3×3; expandnet_cl takes the others",
    "repvgg": "an nn.Conv2d (not depthwise) with a kernel of more than 1×1",
}


def contract(model: Model, keep_factors_below: float | None = None) -> Model:
    """Return a copy of `model` with plain layers in place of factorized ones, under the original state_dict names.

    Each weight is exactly the one that the factorized layer convolved with. A model without factorized layers is
    copied.

    Args:
        model: a model that `overparameterize` made, or any other.
        keep_factors_below: deploy a layer as a sequence of thin layers, under new names, where that needs less than this
            share of the plain layer's MACs. None: never.

    Every plain layer is compared with its factorized form in eval mode on a random input, in float64. Layers on the meta
    device have no values and are not compared.

    Raises:
        ConfigError: for a share out of range.
        SurgeryError: naming the layer, where the two forms differ or a weight is not finite.
    """
    if keep_factors_below is not None and not 0 < keep_factors_below <= 1:
        raise ConfigError(
            f"keep_factors_below {keep_factors_below} is out of range", "a share of MACs lies in (0, 1]"
        )

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, OverparamLayer):
            return None
        plain = module.contracted(keep_factors_below)
        check_contraction(name, module, plain)
        return plain

    return _replaced(model, replace)


def factorized_layers(model: nn.Module) -> dict[str, OverparamLayer]:
    """The layers of `model` in training form by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, OverparamLayer)}


def factor_of(model: nn.Module, parameter: str, dim: int) -> tuple[str, int]:
    """The parameter of `model`, and its dimension, that carries dimension `dim` of a plain parameter.

    `parameter` is a name in the contracted model. Of a layer W = U·M·V, dimension 0 (output channels) and 2 (kernel
    rows) of "layer.weight" are ("layer.U", 0) and ("layer.U", 1), dimension 1 (input channels) and 3 (kernel columns)
    are ("layer.V", 1) and ("layer.V", 2); other kinds have factors of their own. Every other parameter carries
    itself. A zero slice of the factor is a zero slice of the weight. Raises ConfigError for an unknown name or
    dimension, and for a form that has no one factor for it.
    """
    path, _, leaf = parameter.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError as error:
        raise ConfigError(f"the model has no parameter {parameter!r}") from error
    if leaf == "weight" and isinstance(owner, OverparamLayer):
        if not 0 <= dim < len(owner.geometry.weight_shape()):
            raise ConfigError(f"{parameter} has no dimension {dim}")
        if dim not in owner.factor_dims:
            raise ConfigError(
                f"no one factor of {type(owner).__name__} {path} carries dimension {dim} of its weight",
                "channel groups need svd, cp, tucker or expandnet layers",
            )
        factor, factor_dim = owner.factor_dims[dim]
        return f"{path}.{factor}" if path else factor, factor_dim
    tensor = owner._parameters.get(leaf)
    if tensor is None:
        raise ConfigError(f"the model has no parameter {parameter!r}")
    if not 0 <= dim < tensor.dim():
        raise ConfigError(f"{parameter} has no dimension {dim}")
    return parameter, dim


def in_scope(model: nn.Module, scope: str) -> Callable[[str], bool]:
    """Whether a module or parameter name lies in `scope`: the encoder, where there is one, or the model."""
    if scope not in ("encoder", "model"):
        raise ConfigError(f"unknown scope {scope!r}", "known: encoder, model")
    encoder = encoder_of(model)
    if scope == "model" or encoder is None:
        return lambda name: True
    paths = tuple(path for path, module in _named(model) if module is encoder)
    return lambda name: name in paths or name.startswith(tuple(f"{path}." for path in paths))


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _check_tasks(model: nn.Module, kind: str, tasks: Sequence[str], per_task: bool) -> None:
    if not tasks and not per_task:
        return
    if kind not in DIAGONAL:
        raise ConfigError(
            f"{kind} has no diagonals for tasks to own",
            f"kinds with diagonals: {', '.join(sorted(DIAGONAL))}",
        )
    if not tasks:
        raise ConfigError("per_task needs the tasks' names", "give tasks=[...]")
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"a task is named twice in {', '.join(tasks)}", "name each task once")
    known = task_names(model)
    if known is not None and (unknown := [task for task in tasks if task not in known]):
        near = difflib.get_close_matches(unknown[0], list(known), n=1)
        raise ConfigError(
            f"the model has no task {unknown[0]!r}",
            f"did you mean {near[0]}?" if near else f"its tasks are {', '.join(known)}",
        )
    if not per_task:
        return
    if encoder_of(model) is None or known is None:
        raise ConfigError("per_task needs a model with an encoder and heads", "leave per_task out")
    if missing := [head for head in known if head not in tasks]:
        raise ConfigError(f"task {missing[0]} would have no encoder", "name every task for per_task")


def _without(candidates: Mapping[str, nn.Module], exclude: Sequence[str]) -> set[str]:
    names = set(candidates)
    excluded: set[int] = set()
    for pattern in exclude:
        hits = [name for name in candidates if fnmatchcase(name, pattern)]
        if not hits:
            near = difflib.get_close_matches(pattern, list(candidates), n=3, cutoff=0.3)
            raise ConfigError(
                f"exclude pattern {pattern!r} matches no layer that could be factorized",
                f"layers are named like {', '.join(near or list(candidates)[:3])}",
            )
        excluded.update(id(candidates[name]) for name in hits)
    # By identity: a layer that is used under two names stays plain under both.
    return {name for name in names if id(candidates[name]) not in excluded}


def _reject_tied(model: nn.Module, chosen: set[int]) -> None:
    owners: dict[int, dict[int, str]] = defaultdict(dict)
    for name, module in _named(model):
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners[id(parameter)].setdefault(id(module), f"{name}.{leaf}" if name else leaf)
    for _, module in _named(model):
        if id(module) in chosen and len(sharing := owners[id(module._parameters["weight"])]) > 1:
            names = sorted(sharing.values())
            raise ConfigError(
                f"{' and '.join(names)} are one tensor, and factorizing would give each one of its own",
                "exclude these layers by name",
            )


def _replaced(model: Model, replace: Callable[[str, nn.Module], nn.Module | None]) -> Model:
    """A deep copy of `model` with modules replaced in place, a shared module by one shared replacement."""
    model = copy_model(model)
    if (root := replace("", model)) is not None:
        return _as(model, root)
    done: dict[int, nn.Module] = {}
    for name, module in _named(model):
        if not name:
            continue
        if id(module) not in done:
            new = replace(name, module)
            if new is None:
                continue
            for key, value in vars(module).items():
                if key.startswith(("_forward_", "_backward_")):  # hooks stay with their layer
                    setattr(new, key, value)
            done[id(module)] = new
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, done[id(module)])
    return model


def _as(_model: Model, replacement: nn.Module) -> Model:
    # A model that is itself one layer comes back as another class of module, by necessity.
    return replacement  # type: ignore[return-value]
