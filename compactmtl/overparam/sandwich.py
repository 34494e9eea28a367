"""Layers whose weight is a kernel between two matrices: Tucker-2, and ExpandNet's CL.

Sources: arXiv:1511.06530 (Tucker-2, here in place of the SVD of arXiv:2308.13300), arXiv:1811.10495 (ExpandNet).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from compactmtl.overparam.factors import basis, check_finite, normal, orthonormal_columns
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.layer import FactorDims, OverparamLayer, Stage


class SandwichLayer(OverparamLayer):
    """W[o, i] = Σ_qp A[o, q]·K[q, p]·B[p, i]: a 1×1, a kh×kw and a 1×1 convolution.

    A (O, q), K (g·q, p, kh, kw), B (g·p, I).
    """

    factor_dims: ClassVar[FactorDims] = {0: ("A", 0), 1: ("B", 1), 2: ("K", 2), 3: ("K", 3)}
    A: nn.Parameter
    K: nn.Parameter
    B: nn.Parameter

    def product(self) -> Tensor:
        shape, (a, k, b) = self.geometry, self._factors()
        g, (kh, kw) = shape.groups, shape.kernel
        q, p = a.shape[1], k.shape[1]
        # the matrix with more rows or columns to take away goes first
        outer = torch.bmm(a.view(g, shape.rows, q), k.reshape(g, q, p * kh * kw))
        outer = outer.view(g, shape.rows, p, kh * kw).transpose(2, 3).reshape(g, shape.rows * kh * kw, p)
        product = torch.bmm(outer, b.view(g, p, shape.inner))
        return (
            product.view(shape.out, kh, kw, shape.inner)
            .permute(0, 3, 1, 2)
            .clone(memory_format=torch.contiguous_format)
        )

    def product_macs(self) -> int:
        shape, p = self.geometry, self.K.shape[1]
        taps = shape.kernel[0] * shape.kernel[1]
        return self.A.numel() * p * taps + shape.out * taps * p * shape.inner

    def stages(self) -> list[Stage]:
        a, k, b = self._factors()
        g = self.geometry.groups
        return [
            Stage("B", b[..., None, None], "", g),
            Stage("K", k, "hw", g),
            Stage("A", a[..., None, None], "", g),
        ]

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.A, self.K, self.B

    def _set(self, a: Tensor, k: Tensor, b: Tensor, trained: bool) -> None:
        self.A = nn.Parameter(a.contiguous(), requires_grad=trained)
        self.K = nn.Parameter(k.contiguous(), requires_grad=trained)
        self.B = nn.Parameter(b.contiguous(), requires_grad=trained)

    def _groups(self, plain: Plain) -> Tensor:
        """The weight as (g, o, i, kh, kw); raises ConfigError where it is not finite."""
        check_finite(plain.weight)
        shape = self.geometry
        return plain.weight.detach().view(shape.groups, shape.rows, shape.inner, *shape.kernel)


class TuckerLayer(SandwichLayer):
    """Tucker-2 with orthonormal A and B at the start, and a diagonal M (T, g·(q + p)) on either side of the kernel.

    The function is unchanged where both ranks are full: q = min(O/g, I·kh·kw), p = min(I, O/g·kh·kw).
    """

    def __init__(self, plain: Plain, ranks: tuple[int, int], tasks: int = 1) -> None:
        """Factorize `plain` at ranks (q, p); as SvdLayer."""
        super().__init__(plain, max(ranks))
        self.ranks = ranks
        outer, kernel, inner = [], [], []
        for weight in self._groups(plain):
            a = basis(weight.flatten(1), ranks[0])
            b = basis(weight.transpose(0, 1).flatten(1), ranks[1])
            outer.append(a)
            inner.append(b.T)
            # columns beyond the dimension meet a kernel of zeros, which learns
            own = (torch.arange(ranks[0]) < a.shape[0]), (torch.arange(ranks[1]) < b.shape[0])
            core = torch.einsum("oq,oihw,ip->qphw", a, weight, b)
            kernel.append(core * (own[0][:, None] & own[1])[..., None, None].to(core))
        trained = plain.weight.requires_grad
        self._set(torch.cat(outer), torch.cat(kernel), torch.cat(inner), trained)
        self.M = nn.Parameter(
            self.A.new_ones(tasks, self.geometry.groups * sum(ranks)), requires_grad=trained
        )

    @staticmethod
    def full_ranks(geometry: Geometry) -> tuple[int, int]:
        """The ranks (q, p) at which every weight of this shape can be written."""
        taps = geometry.kernel[0] * geometry.kernel[1]
        return min(geometry.rows, geometry.inner * taps), min(geometry.inner, geometry.rows * taps)

    @staticmethod
    def full_rank(geometry: Geometry) -> int:
        """The larger of the two."""
        return max(TuckerLayer.full_ranks(geometry))

    def diagonal(self) -> Tensor:
        """The Hadamard product of the tasks' diagonals, (g·(q + p),)."""
        return self.M[0] if len(self.M) == 1 else self.M.prod(0)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        diagonal, count = self.diagonal(), len(self.K)
        outer, inner = diagonal[:count], diagonal[count:]
        return self.A, outer[:, None, None, None] * self.K, inner[:, None] * self.B

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, ranks={self.ranks}"


class ExpandLayer(SandwichLayer):
    """ExpandNet-CL: expanded by 1×1 convolutions to `rate` times the channels on both sides of the kernel.

    At the start A and B have orthonormal rows and columns, and the kernel is the weight projected by them plus
    random values of the same size that the product does not contain. So the function is unchanged, and there is
    something to learn from in every direction.
    """

    def __init__(self, plain: Plain, rate: float) -> None:
        """Expand `plain`; `rate` is at least 1. Raises ConfigError for a weight that is not finite."""
        shape = Geometry.of(plain)
        q, p = (max(channels, round(rate * channels)) for channels in (shape.rows, shape.inner))
        super().__init__(plain, q)
        self.rate = rate
        outer, kernel, inner = [], [], []
        for weight in self._groups(plain):
            a = orthonormal_columns(q, shape.rows, weight).T
            b = orthonormal_columns(p, shape.inner, weight)
            noise = normal(weight, q, p, *shape.kernel)
            if not weight.is_meta:
                noise *= weight.std(correction=0) * (weight.numel() / noise.numel()) ** 0.5
            visible = weight - torch.einsum("oq,qphw,pi->oihw", a, noise, b)
            outer.append(a)
            kernel.append(noise + torch.einsum("oq,oihw,pi->qphw", a, visible, b))
            inner.append(b)
        self._set(torch.cat(outer), torch.cat(kernel), torch.cat(inner), plain.weight.requires_grad)

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, rate={self.rate}"
