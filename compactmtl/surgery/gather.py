"""What runs in a model whose layers read and write less than the tensors around them: spans, and channels picked by index.

Numbers are attributes and indices are buffers that are not saved: state_dict keeps its names, and the plan holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def install(
    module: nn.Module, inputs: Sequence[int] | None, outputs: Sequence[int] | None, constants: Sequence[float]
) -> None:
    """Make a layer gather its inputs and spread its outputs.

    `inputs` are the channels that it reads of its input tensor. `outputs` gives for each channel of its output tensor
    the layer's own output, or their number where it has none: there `constants` (empty: zeros) are written.
    """
    device = _device(module)
    if inputs is not None:
        module.register_buffer("gather_index", torch.tensor(inputs, device=device), persistent=False)
        module.register_forward_pre_hook(_gather)
    if outputs is not None:
        module.register_buffer("spread_index", torch.tensor(outputs, device=device), persistent=False)
        _register_constants(module, constants)
        module.register_forward_hook(_spread)


def install_span(
    module: nn.Module,
    inputs: tuple[int, int] | None,
    outputs: tuple[int, int] | None,
    size: int,
    constants: Sequence[float],
) -> None:
    """Make a layer read the channels of its input tensor from the first of `inputs` to the one behind the last, and pad its outputs.

    `outputs` is where they lie among the `size` channels of its output tensor; elsewhere `constants` (empty: zeros) stand.
    """
    if inputs is not None:
        module.read_span = (inputs[0], inputs[1] - inputs[0])  # type: ignore[assignment]
        module.register_forward_pre_hook(_narrow)
    if outputs is not None:
        module.written_span = (outputs[0], size - outputs[1])  # type: ignore[assignment]
        _register_constants(module, constants)
        module.register_forward_hook(_pad)


def takes_a_part(module: nn.Module) -> bool:
    """Whether a layer already reads or writes a part of the channels around it."""
    names = ("gather_index", "spread_index", "read_span", "written_span")
    return any(hasattr(module, name) for name in names)


def _device(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return tensors[0].device


def _register_constants(module: nn.Module, constants: Sequence[float]) -> None:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    values = torch.tensor(constants, dtype=torch.float64).to(tensors[0]) if any(constants) else None
    module.register_buffer("spread_constants", values, persistent=False)


def _channel(module: nn.Module, value: Tensor) -> int:
    if isinstance(module, _BatchNorm):
        return 1
    weight = module.weight
    assert isinstance(weight, Tensor)
    return value.ndim - 1 if isinstance(module, nn.Linear) else value.ndim - weight.ndim + 1


def _gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    index = module.gather_index
    assert isinstance(index, Tensor)
    return (args[0].index_select(_channel(module, args[0]), index), *args[1:])


def _spread(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    index = module.spread_index
    assert isinstance(index, Tensor)
    dim = _channel(module, output)
    after = output.ndim - 1 - dim
    padded = nn.functional.pad(output, (0, 0) * after + (0, 1))
    return _with_constants(module, padded.index_select(dim, index), after)


def _narrow(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first, length = module.read_span
    return (args[0].narrow(_channel(module, args[0]), first, length), *args[1:])


def _pad(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    after = output.ndim - 1 - _channel(module, output)
    padded = nn.functional.pad(output, (0, 0) * after + module.written_span)
    return _with_constants(module, padded, after)


def _with_constants(module: Any, value: Tensor, after: int) -> Tensor:
    constants = module.spread_constants
    if not isinstance(constants, Tensor):
        return value
    if constants.dtype != value.dtype:  # under autocast the layer gives a narrower type than it has
        constants = constants.to(value.dtype)
    return value + constants.view(-1, *[1] * after)
