"""One encoder a task, W(t) = U·M(t)·V: all parameters shared but the diagonals. Source: arXiv:2308.13300.

It is the other reading of the paper. Its cost is one encoder pass for each task, in training and deployed, and
statistics of batch norms for each task, because the tasks' activations differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from compactmtl.graph.copies import copy_model
from compactmtl.models.multitask import TaskEncoders
from compactmtl.overparam.layer import DIAGONAL, OverparamLayer


def split_encoder(model: nn.Module, tasks: Sequence[str]) -> None:
    """Give `model.encoder` a copy for each of `tasks`, in place. Only diagonals and buffers are each copy's own."""
    first = model.encoder
    assert isinstance(first, nn.Module)
    encoders = {task: first if index == 0 else copy_model(first) for index, task in enumerate(tasks)}
    own = {
        f"{name}.{DIAGONAL}" if name else DIAGONAL
        for name, layer in first.named_modules()
        if isinstance(layer, OverparamLayer)
    }
    shared = {name: one for name, one in first.named_parameters(remove_duplicate=False) if name not in own}
    for encoder in encoders.values():
        for name, parameter in shared.items():
            path, _, leaf = name.rpartition(".")
            setattr(encoder.get_submodule(path), leaf, parameter)
    model.encoder = TaskEncoders(encoders)
