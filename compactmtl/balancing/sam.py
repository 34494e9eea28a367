"""Sharpness-aware minimization: weights moved uphill for the pass whose gradient is followed. Source: arXiv:2010.01412."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def uphill(parameters: Iterable[nn.Parameter], rho: float, *, adaptive: bool = False) -> Iterator[None]:
    """Parameters moved by `rho` along their `.grad`; afterwards they are what they were, to the bit.

    `adaptive` measures the step in each weight's own size (arXiv:2102.11600): e = ρ w² g / ‖|w| g‖. Parameters without
    a gradient stay. Nothing moves where the gradient is 0 or not finite.
    """
    moved = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    originals = [parameter.detach().clone() for parameter, _ in moved]
    with torch.no_grad():
        sizes = [_size(parameter, adaptive) for parameter, _ in moved]
        lengths = [(size * slope).norm() for size, (_, slope) in zip(sizes, moved, strict=True)]
        length = torch.stack(lengths).norm() if lengths else torch.zeros(())
        scale = torch.where(torch.isfinite(length) & (length > 0), rho / length, torch.zeros_like(length))
        for size, (parameter, slope) in zip(sizes, moved, strict=True):
            parameter.add_(size * size * torch.where(scale > 0, slope, torch.zeros_like(slope)) * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for original, (parameter, _) in zip(originals, moved, strict=True):
                parameter.copy_(original)


def _size(parameter: Tensor, adaptive: bool) -> Tensor:
    return parameter.detach().abs() if adaptive else torch.ones((), device=parameter.device)
