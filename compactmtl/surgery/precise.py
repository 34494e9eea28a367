"""Run a model in float64 although its forward names another floating type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32))
_CASTS = frozenset((Tensor.half, Tensor.bfloat16, Tensor.float))


class in_double(TorchFunctionMode):
    """Every cast to a narrower floating type, and every tensor made in one, is in float64 instead.

    So a model whose layers are of several types, or that casts on its way, has one function in exact arithmetic:
    what surgery has to keep, without the rounding of the narrow types.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            func, args, kwargs = Tensor.double, args[:1], {}
        args, kwargs = tree_map(_doubled, (args, dict(kwargs or {})))
        result = func(*args, **kwargs)
        made = isinstance(result, Tensor) and result.dtype in _FLOATS
        if made and not any(isinstance(value, Tensor) and value.dtype in _FLOATS for value in args):
            return result.double()  # a tensor made of numbers; one that was there before keeps its type
        return result


def _doubled(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _FLOATS else value
