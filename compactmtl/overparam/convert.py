"""Turn a model's layers into factorized ones and back. Source: arXiv:2308.13300."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from torch import nn

from compactmtl.errors import CompactError, ConfigError
from compactmtl.graph.copies import copy_model
from compactmtl.overparam.svd import FactorizedConv2d, FactorizedLinear

Plain = nn.Conv2d | nn.Linear
Factorized = FactorizedConv2d | FactorizedLinear
Rank = Literal["full"] | int | float
Model = TypeVar("Model", bound=nn.Module)


def overparameterize(
    model: Model,
    kind: Literal["svd"] = "svd",
    rank: Rank = "full",
    scope: Literal["encoder", "model"] = "encoder",
    exclude: Sequence[str] = (),
) -> Model:
    """A copy of `model` whose convolutions and linears are products of factors, with the same function.

    The function is unchanged to float tolerance at rank "full"; a number (int) caps every layer's rank,
    a share in (0, 1] (float) cuts it to that share of full, and both start at the best approximation.
    `scope` "encoder" takes the layers below `model.encoder`, or all of a model that has no such part.
    `exclude` holds globs of layer names that stay plain. Layers of exactly the types nn.Conv2d and
    nn.Linear take part, depthwise convolutions stay plain, and a module used twice stays one module.
    A model on the meta device gets factors without values, to load a checkpoint into.

    Raises ConfigError for an unknown kind or scope, a rank out of range, weights that are not finite or
    tied between layers, a pattern that names no layer, and a model without a layer to factorize.
    """
    if kind != "svd":
        raise ConfigError(f"unknown over-parameterization {kind!r}", "known: svd")
    inside = in_scope(model, scope)
    if factorized_layers(model):
        raise ConfigError("the model is factorized already", "contract it first")
    candidates = {name: m for name, m in _named(model) if inside(name) and _is_plain(m)}
    names = _without(candidates, exclude)
    chosen = {id(candidates[name]) for name in names}
    if not chosen:
        raise ConfigError(
            f"no layer to factorize in scope {scope!r}",
            "factorizing needs an nn.Conv2d (not depthwise) or nn.Linear that is not excluded",
        )
    _reject_tied(model, chosen)
    largest = max(_full_rank(candidates[name]) for name in names)
    _check_rank(rank, largest)

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if name not in names or not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        r = _rank(rank, _full_rank(module))
        try:
            return (
                FactorizedConv2d(module, r) if isinstance(module, nn.Conv2d) else FactorizedLinear(module, r)
            )
        except CompactError as error:
            raise type(error)(f"layer {name or '(the model)'}: {error.message}", error.hint) from error

    return _replaced(model, replace)


def contract(model: Model) -> Model:
    """A copy of `model` with plain layers for factorized ones, under the original state_dict names.

    Each weight is exactly the one that the factorized layer convolved with. A model without factorized
    layers comes back as a plain copy.
    """

    def replace(_name: str, module: nn.Module) -> nn.Module | None:
        return module.contracted() if isinstance(module, FactorizedConv2d | FactorizedLinear) else None

    return _replaced(model, replace)


def factorized_layers(model: nn.Module) -> dict[str, Factorized]:
    """The factorized layers of `model` by name, each once."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FactorizedConv2d | FactorizedLinear)
    }


def factor_of(model: nn.Module, parameter: str, dim: int) -> tuple[str, int]:
    """The parameter of `model`, and its dimension, that carries dimension `dim` of a plain parameter.

    `parameter` is a name in the contracted model. For a factorized convolution, dimension 0 (output
    channels) and 2 (kernel rows) of "layer.weight" are ("layer.U", 0) and ("layer.U", 1), dimension 1
    (input channels) and 3 (kernel columns) are ("layer.V", 1) and ("layer.V", 2); for a factorized
    linear 0 is ("layer.U", 0) and 1 is ("layer.V", 1). Every other parameter carries itself. A zero
    slice of the factor is a zero slice of the weight. Raises ConfigError for an unknown name or dimension.
    """
    path, _, leaf = parameter.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError as error:
        raise ConfigError(f"the model has no parameter {parameter!r}") from error
    if leaf == "weight" and isinstance(owner, FactorizedConv2d | FactorizedLinear):
        if dim not in owner.factor_dims:
            raise ConfigError(f"{parameter} has no dimension {dim}")
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
    if scope == "encoder" and isinstance(getattr(model, "encoder", None), nn.Module):
        return lambda name: name.split(".", 1)[0] == "encoder"
    return lambda name: True


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer's function is that of its own weight parameter and nothing else.

    A subclass may transform the weight on its way, a parametrization or a hook may compute it.
    """
    if type(module) is nn.Linear:
        return module._parameters.get("weight") is not None
    if type(module) is nn.Conv2d:
        return module._parameters.get("weight") is not None and module.weight.shape[1] > 1
    return False


def _full_rank(module: nn.Module) -> int:
    if isinstance(module, nn.Conv2d):
        return FactorizedConv2d.full_rank(module)
    assert isinstance(module, nn.Linear)
    return FactorizedLinear.full_rank(module)


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
                f"{' and '.join(names)} are one tensor, and factorizing would tie them apart",
                "exclude these layers by name",
            )


def _check_rank(rank: Rank, largest: int) -> None:
    if rank == "full":
        return
    if isinstance(rank, bool | str):
        raise ConfigError(f"rank {rank!r} is not a rank", "give full, a number, or a share of full")
    if isinstance(rank, int) and not 1 <= rank <= largest:
        raise ConfigError(f"rank {rank} is out of range", f"this model's layers take ranks 1 to {largest}")
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ConfigError(f"rank {rank} is out of range", "a share of the full rank lies in (0, 1]")


def _rank(rank: Rank, full: int) -> int:
    if isinstance(rank, str):
        return full
    return min(rank, full) if isinstance(rank, int) else max(1, round(rank * full))


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
