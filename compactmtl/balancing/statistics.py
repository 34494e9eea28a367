"""Passes beside the training step's own must leave no trace in batch norm's running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from compactmtl.overparam.repvgg import BranchNorm


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Normalization over the batch goes on without moving its running statistics."""
    norms = [
        m
        for m in model.modules()
        if isinstance(m, _NormBase | BranchNorm) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False  # statistics of the batch are used all the same in training mode
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
