"""Buffers that a forward makes, such as anchors for a size, as the plain attributes that the tracer can follow."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def free_late_buffers(model: nn.Module) -> None:
    """Make attributes of the empty buffers of a borrowed model, and of those that its forward registers.

    `torch.export` finds a buffer that a forward assigns by its place among the buffers. Empty and new ones have none:
    the value would be written into another buffer, or into an input. Call it within `borrowed`, which undoes it.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name in [name for name, value in module._buffers.items() if value is None]:
            del module._buffers[name]
            vars(module)[name] = None
        vars(module)["register_buffer"] = functools.partial(_assign, module)


def _assign(module: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
    """What `register_buffer` does as far as a forward can tell."""
    if name in module._buffers:
        type(module).register_buffer(
            module, name, tensor, persistent
        )  # which is how an assignment does it, too
    else:
        vars(module)[name] = tensor
