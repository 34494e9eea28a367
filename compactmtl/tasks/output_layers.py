"""Fixed functions behind a head's last layer, which put a value into the data's unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """x * scale + shift with fixed numbers: a standardized value in the data's unit.

    The layer before it learns at the pace of a standardized target whatever the unit is, starts near the training
    mean, and the exported model still speaks in the unit.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("shift", torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class PositiveScale(nn.Module):
    """softplus(x) * scale: a depth or disparity in the data's unit, always positive, and linear when large."""

    scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.softplus(x) * self.scale  # type: ignore[no-any-return]
