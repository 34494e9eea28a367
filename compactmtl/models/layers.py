"""The convolution blocks that heads and encoders are made of."""

from __future__ import annotations

from torch import nn


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 3, *, dilation: int = 1, bias: bool = False
) -> nn.Sequential:
    """Convolution that keeps the map's size, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
