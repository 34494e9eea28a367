"""What a plain convolution or linear layer is beside its weight: shape, stride, padding, groups; and how to run it.

A linear layer is a 1×1 convolution of its features: its weight is treated as (O, I, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Plain = nn.Conv2d | nn.Linear
Axes = Literal[
    "", "h", "w", "hw"
]  # the spatial dimensions in which a stage has its kernel, stride and padding


@dataclass(frozen=True)
class Geometry:
    """A plain layer without its weight. `inner` counts the input channels of one convolution group."""

    linear: bool
    out: int
    inner: int
    kernel: tuple[int, int]
    groups: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: str | tuple[int, int]
    padding_mode: str
    border: tuple[int, int, int, int]  # left, right, top, bottom, as F.pad takes them

    @classmethod
    def of(cls, plain: Plain) -> Geometry:
        """The geometry of a layer."""
        if isinstance(plain, nn.Linear):
            one, none = (1, 1), (0, 0)
            out, inner = plain.weight.shape
            return cls(True, out, inner, one, 1, one, one, none, "zeros", (0, 0, 0, 0))
        out, inner, kh, kw = plain.weight.shape
        left, right, top, bottom = plain._reversed_padding_repeated_twice
        padding = plain.padding if isinstance(plain.padding, str) else _pair(plain.padding)
        return cls(
            linear=False,
            out=out,
            inner=inner,
            kernel=(kh, kw),
            groups=plain.groups,
            stride=_pair(plain.stride),
            dilation=_pair(plain.dilation),
            padding=padding,
            padding_mode=plain.padding_mode,
            border=(left, right, top, bottom),
        )

    @property
    def rows(self) -> int:
        """Output channels of one convolution group."""
        return self.out // self.groups

    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the plain layer's weight."""
        return (self.out, self.inner) if self.linear else (self.out, self.inner, *self.kernel)

    def apply(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        axes: Axes = "hw",
        groups: int | None = None,
    ) -> Tensor:
        """Run x through a weight (out, in, kh, kw) with this stride, padding and dilation along `axes` alone."""
        if self.linear:
            return F.linear(x, weight.flatten(1), bias)
        stride, dilation = self._along(self.stride, axes), self._along(self.dilation, axes)
        if self.padding_mode == "zeros":
            padding = self.padding if isinstance(self.padding, str) else self._along(self.padding, axes, 0)
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups or self.groups)
        left, right, top, bottom = self.border
        border = [left * ("w" in axes), right * ("w" in axes), top * ("h" in axes), bottom * ("h" in axes)]
        if any(border):
            x = F.pad(x, border, mode=self.padding_mode)
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups or self.groups)

    def layer(
        self,
        out: int,
        into: int,
        kernel: tuple[int, int],
        bias: bool,
        axes: Axes = "hw",
        groups: int | None = None,
    ) -> Plain:
        """A plain layer on the meta device of `into` input channels, with this geometry along `axes`."""
        if self.linear:
            return nn.Linear(into, out, bias, device="meta")
        padding = self.padding if isinstance(self.padding, str) else self._along(self.padding, axes, 0)
        return nn.Conv2d(
            into,
            out,
            kernel,
            self._along(self.stride, axes),
            padding,
            self._along(self.dilation, axes),
            groups or self.groups,
            bias,
            self.padding_mode,  # type: ignore[arg-type]  # it came from a layer
            device="meta",
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the map that comes out for an input of (h, w)."""
        left, right, top, bottom = self.border
        spans = (size[0] + top + bottom, size[1] + left + right)
        return tuple(  # type: ignore[return-value]
            (span - d * (k - 1) - 1) // s + 1
            for span, k, s, d in zip(spans, self.kernel, self.stride, self.dilation, strict=True)
        )

    def positions(self, shape: Sequence[int]) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """Batch, input size and output size for an input of `shape`; a linear layer has one position a row."""
        if self.linear:
            return math.prod(shape[:-1]), (1, 1), (1, 1)
        batch, size = (shape[0] if len(shape) == 4 else 1), (shape[-2], shape[-1])
        return batch, size, self.output_size(size)

    def describe(self) -> str:
        """The geometry in a module's printed form."""
        if self.linear:
            return f"{self.inner}, {self.out}"
        return (
            f"{self.inner * self.groups}, {self.out}, kernel_size={self.kernel}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}"
        )

    @staticmethod
    def _along(values: tuple[int, int], axes: Axes, otherwise: int = 1) -> tuple[int, int]:
        return (values[0] if "h" in axes else otherwise, values[1] if "w" in axes else otherwise)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second
