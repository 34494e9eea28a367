"""Copies of a model: deep, in another float type, or sharing the tensors of the original."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from compactmtl.graph.borrow import trainable

_DEPTH = 12  # of what lies within each other: a model's own modules are visited each
Model = TypeVar("Model", bound=nn.Module)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter, buffer and tensor attribute of every module, each once."""
    visited: set[int] = set()
    for module in model.modules():
        attributes = (value for value in vars(module).values() if isinstance(value, Tensor))
        for value in (*module._parameters.values(), *module._buffers.values(), *attributes):
            if value is not None and id(value) not in visited:
                visited.add(id(value))
                yield value


def _kept_in(value: object, visited: set[int], depth: int = 0) -> Iterator[Tensor]:
    """The tensors in containers, objects and modules within each other, such as what a forward has cached."""
    if (
        isinstance(value, (str, bytes, int, float, bool, type, ModuleType))
        or id(value) in visited
        or depth > _DEPTH
    ):
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _kept_in(item, visited, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for item in value:
            yield from _kept_in(item, visited, depth + 1)
    elif isinstance(value, nn.Module) or not callable(value):  # a module may lie in a plain list
        yield from _kept_in(getattr(value, "__dict__", {}), visited, depth + 1)


@trainable
def copy_model(model: Model, *, dtype: torch.dtype | None = None, share: bool = False) -> Model:
    """A deep copy of `model`, floating tensors in `dtype` where it is given.

    With `share` the copy holds the very tensors of the original: it may replace them but not write into them.
    Unlike `copy.deepcopy` this takes tensors that were computed from parameters, such as the `weight` that
    `torch.nn.utils.weight_norm` leaves behind, or that a forward keeps in a dict, and never holds a tensor in two types at once.
    """
    memo: dict[int, Tensor] = {}
    for value in tensors_of(model):
        if share:
            memo[id(value)] = value
        elif type(value) in (Tensor, nn.Parameter):  # other classes know how they are copied
            memo[id(value)] = _copied(value, dtype)
    visited = set[int]()
    for module in model.modules():
        for value in (kept for own in vars(module).values() for kept in _kept_in(own, visited)):
            if type(value) in (Tensor, nn.Parameter) and id(value) not in memo:
                memo[id(value)] = (
                    value if share and isinstance(value, nn.Parameter) else _copied(value, dtype)
                )
    return copy.deepcopy(model, memo)


def _copied(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
    fresh = value.detach().to(kind, copy=True)
    return nn.Parameter(fresh, value.requires_grad) if isinstance(value, nn.Parameter) else fresh
