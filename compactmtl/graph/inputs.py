"""What a model takes: positional arguments that are tensors, or lists, dicts and dataclasses of them, and other values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compactmtl.errors import SurgeryError
from compactmtl.graph.borrow import trainable

Arguments = tuple[Any, ...]
_MEND = "pass what model(*example_inputs) takes, such as (image,), or a dict of keyword arguments"


def as_arguments(model: nn.Module, example_inputs: object) -> Arguments:
    """The positional arguments that `example_inputs` are: a tensor, a list or tuple of arguments, or a dict of keyword ones.

    Arguments may be tensors, None, numbers and strings, and lists, tuples, dicts and dataclasses of them. Raises
    SurgeryError where there is no tensor in them, or where forward takes no argument of a given name.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, Mapping):
        arguments = _positional(model, example_inputs)
    elif isinstance(example_inputs, (list, tuple)):
        arguments = tuple(example_inputs)
    else:
        kind = type(example_inputs).__name__
        raise SurgeryError(f"the example inputs have to be a list or tuple, found a {kind}", _MEND)
    register_dataclasses(arguments)
    if not tensors_in(arguments):
        raise SurgeryError("the example inputs hold no tensor", _MEND)
    return arguments


def _positional(model: nn.Module, given: Mapping[str, Any]) -> Arguments:
    """Keyword arguments in the order of the forward, with the defaults of those before the last one given."""
    try:
        bound = inspect.signature(model.forward).bind(**given)
    except TypeError as error:
        raise SurgeryError(
            f"{type(model).__name__} does not take these keyword arguments: {error}",
            "name the parameters of its forward; a dict that is one positional argument is given as (inputs,)",
        ) from error
    alone = _keyword_only(bound)
    if alone:
        raise SurgeryError(
            f"{type(model).__name__} takes {', '.join(alone)} by keyword alone, which cannot be traced",
            "wrap the model in a module whose forward takes them by position",
        )
    names = [name for name in bound.signature.parameters if name in bound.arguments]
    last = names[-1] if names else ""
    values = []
    for name, parameter in bound.signature.parameters.items():
        values.append(bound.arguments.get(name, parameter.default))
        if name == last:
            break
    return tuple(values)


def _keyword_only(bound: inspect.BoundArguments) -> list[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [name for name in bound.arguments if bound.signature.parameters[name].kind in kinds]


def tensors_in(value: object) -> list[Tensor]:
    """The tensors of nested arguments or outputs, in their order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@trainable
def map_tensors(change: Callable[[Tensor], Tensor], arguments: Sequence[Any]) -> Arguments:
    """Nested arguments with every tensor changed; everything else as it is."""
    return tuple(tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, list(arguments)))


def copied(arguments: Sequence[Any]) -> Arguments:
    """Arguments whose tensors are one's own: a forward may write into them."""
    return map_tensors(lambda tensor: tensor.detach().clone(), arguments)


def batch_size(arguments: Sequence[Any]) -> int:
    """The size of the first dimension of the first tensor that has one; 1 where none has."""
    return next((len(tensor) for tensor in tensors_in(list(arguments)) if tensor.dim()), 1)


def register_dataclasses(value: object) -> None:
    """Make torch look into the dataclasses in a value, as it does into dicts: in arguments, and in what a model returns."""
    known = set[type]()
    while True:
        leaves = [type(leaf) for leaf in tree_leaves(value) if not isinstance(leaf, (type, nn.Module))]
        kinds = {kind for kind in leaves if dataclasses.is_dataclass(kind)} - known
        if not kinds:
            return
        known |= kinds
        for kind in kinds:
            torch.export.register_dataclass(kind)
