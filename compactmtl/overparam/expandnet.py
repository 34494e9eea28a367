"""Layers whose kernel is a chain of 3×3 kernels, ExpandNet's CK. Source: arXiv:1811.10495.

The paper leaves the widths of the chain and its start open. Here a link is `rate` times as wide as the layer's
input, or as wide as it takes to write every kernel, and the chain begins as the layer's own weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.overparam.factors import check_finite, normal
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.layer import FactorDims, OverparamLayer


class ChainLayer(OverparamLayer):
    """The kernel is that of several convolutions in a row, each at most 3×3 and without padding of its own.

    `first` (g·p, I, ·, ·), further links and `last` (O, p, ·, ·) are parameters; kernels of more than 3×3 alone
    have such a form. At the start each link shifts its input, so that the last one holds the weight tap by tap;
    channels beyond those carry random filters that the last link ignores until it learns.
    """

    factor_dims: ClassVar[FactorDims] = {0: ("last", 0), 1: ("first", 1)}

    def __init__(self, plain: Plain, rate: float) -> None:
        """Expand `plain`. Raises ConfigError for a weight that is not finite."""
        shape = Geometry.of(plain)
        kernels, widths = chain(shape.kernel), _widths(shape, rate)
        super().__init__(plain, max(widths))
        self.rate = rate
        check_finite(plain.weight)
        weight, trained = plain.weight.detach(), plain.weight.requires_grad
        inner, known = shape.inner, [(0, 0)]
        for index, (kernel, width) in enumerate(zip(kernels[:-1], widths, strict=True)):
            shifts = sorted({(y + dy, x + dx) for y, x in known for dy, dx in _corners(kernel)})
            link = normal(weight, shape.groups * width, inner, *kernel) / math.sqrt(
                inner * kernel[0] * kernel[1]
            )
            if not weight.is_meta:
                self._shift(link.view(shape.groups, width, inner, *kernel), known, shifts)
            self.register_parameter(
                "first" if index == 0 else f"link{index}", nn.Parameter(link, requires_grad=trained)
            )
            inner, known = width, shifts
        last = weight.new_zeros(shape.out, inner, *kernels[-1])
        if not weight.is_meta:
            self._fill_last(last, weight, known)
        self.last = nn.Parameter(last, requires_grad=trained)

    @staticmethod
    def full_rank(geometry: Geometry) -> int:
        """The width of the narrowest chain that can write every kernel; 0 where the kernel has none."""
        return max(_widths(geometry, 1.0), default=0)

    @property
    def links(self) -> list[Tensor]:
        """The kernels of the chain, first to last."""
        return [parameter for name, parameter in self.named_parameters() if name != "bias"]

    def product(self) -> Tensor:
        shape = self.geometry
        weight, *rest = self.links
        g = shape.groups
        for link in rest:
            # Σ over a + b = t of link[a]·weight[b]: a transposed convolution of the one by the other
            rows, width = len(link) // g, link.shape[1]
            later = link.reshape(g, rows, width, *link.shape[2:]).transpose(0, 1).flatten(1, 2)
            composed = F.conv_transpose2d(later, weight, groups=g)
            weight = composed.view(rows, g, shape.inner, *composed.shape[2:]).transpose(0, 1).flatten(0, 1)
        return weight.clone(memory_format=torch.contiguous_format)

    def product_macs(self) -> int:
        weight, *rest = self.links
        (kh, kw), macs = weight.shape[2:], 0
        for link in rest:
            macs += link.numel() * self.geometry.inner * kh * kw
            kh, kw = kh + link.shape[2] - 1, kw + link.shape[3] - 1
        return macs

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, rate={self.rate}"

    def _shift(self, link: Tensor, known: list[tuple[int, int]], shifts: list[tuple[int, int]]) -> None:
        """Let the first channels of `link` (g, width, p, ·, ·) be its input's, each at a shift of its own."""
        inner = self.geometry.inner
        kernel = (link.shape[-2], link.shape[-1])
        for number, (y, x) in enumerate(shifts):
            source, (dy, dx) = next(
                (index, (y - ky, x - kx))
                for index, (ky, kx) in enumerate(known)
                if (y - ky, x - kx) in _corners(kernel)
            )
            for channel in range(inner):
                link[:, number * inner + channel] = 0
                link[:, number * inner + channel, source * inner + channel, dy, dx] = 1

    def _fill_last(self, last: Tensor, weight: Tensor, shifts: list[tuple[int, int]]) -> None:
        inner = self.geometry.inner
        kh, kw = last.shape[-2:]
        done = torch.zeros(weight.shape[-2:], dtype=torch.bool)
        for number, (y, x) in enumerate(shifts):
            for dy in range(kh):
                for dx in range(kw):
                    if not done[y + dy, x + dx]:
                        done[y + dy, x + dx] = True
                        last[:, number * inner : (number + 1) * inner, dy, dx] = weight[:, :, y + dy, x + dx]


def chain(kernel: tuple[int, int]) -> list[tuple[int, int]]:
    """Kernels of at most 3×3 whose chain is a kernel of this size; (5, 3) is (3, 1), (3, 3)."""
    rows, columns = list(_parts(kernel[0])), list(_parts(kernel[1]))
    length = max(len(rows), len(columns))
    # the narrow ones first: the last has to reach every tap between the shifts of those before it
    rows = [1] * (length - len(rows)) + rows
    columns = [1] * (length - len(columns)) + columns
    return list(zip(rows, columns, strict=True))


def _parts(size: int) -> Iterator[int]:
    while size > 3:
        yield 3
        size -= 2
    yield size


def _corners(kernel: tuple[int, int]) -> list[tuple[int, int]]:
    return [(y, x) for y in sorted({0, kernel[0] - 1}) for x in sorted({0, kernel[1] - 1})]


def _widths(shape: Geometry, rate: float) -> list[int]:
    """Channels between the links: what every shift of the input needs, or `rate` times the input's."""
    known, widths = {(0, 0)}, []
    for kernel in chain(shape.kernel)[:-1]:
        known = {(y + dy, x + dx) for y, x in known for dy, dx in _corners(kernel)}
        widths.append(max(len(known) * shape.inner, round(rate * shape.inner)))
    return widths
