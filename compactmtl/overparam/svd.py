"""Layers whose weight is U·diag(M)·V by the spatial SVD. Source: arXiv:2308.13300."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from compactmtl.overparam.factors import check_finite, factors
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.layer import FactorDims, OverparamLayer, Stage


class SvdLayer(OverparamLayer):
    """W = U·diag(M)·V: a 1×kw convolution, a diagonal, and a kh×1 convolution.

    U (O, kh, r), V (g·r, I, kw), M (T, g·r): the T diagonals multiply (T is 1 under joint training). Each
    convolution group is a matrix product of its own. A linear layer has kh = kw = 1.
    """

    # A dimension of the plain weight (O, I, kh, kw) lives in one dimension of one factor.
    factor_dims: ClassVar[FactorDims] = {0: ("U", 0), 1: ("V", 1), 2: ("U", 1), 3: ("V", 2)}

    def __init__(self, plain: Plain, rank: int, tasks: int = 1) -> None:
        """Factorize `plain`, the function unchanged where `rank` is full or more, else its best approximation.

        Raises ConfigError for a weight that is not finite.
        """
        super().__init__(plain, rank)
        shape, trained = self.geometry, plain.weight.requires_grad
        (kh, kw), g = shape.kernel, shape.groups
        check_finite(plain.weight)
        weight = plain.weight.detach().view(g, shape.rows, shape.inner, kh, kw).transpose(2, 3)
        u, v = factors(weight.reshape(g, shape.rows * kh, shape.inner * kw), rank)
        self.U = nn.Parameter(u.reshape(shape.out, kh, rank), requires_grad=trained)
        self.M = nn.Parameter(u.new_ones(tasks, g * rank), requires_grad=trained)
        self.V = nn.Parameter(v.reshape(g * rank, shape.inner, kw), requires_grad=trained)

    @staticmethod
    def full_rank(geometry: Geometry) -> int:
        """The rank at which every weight of this shape can be written."""
        return min(geometry.rows * geometry.kernel[0], geometry.inner * geometry.kernel[1])

    def product(self) -> Tensor:
        shape = self.geometry
        (kh, kw), g = shape.kernel, shape.groups
        v = self.diagonal()[:, None, None] * self.V
        if g == 1:  # without picking the one group out, whose gradient would be copied
            product = self.U.view(-1, self.rank) @ v.view(self.rank, -1)
        else:
            product = torch.bmm(self.U.view(g, -1, self.rank), v.view(g, self.rank, -1))
        return product.view(shape.out, kh, shape.inner, kw).transpose(1, 2).contiguous()

    def diagonal(self) -> Tensor:
        """The Hadamard product of the tasks' diagonals, (g·r,)."""
        return self.M[0] if len(self.M) == 1 else self.M.prod(0)

    def product_macs(self) -> int:
        return self.U.numel() * self.geometry.inner * self.geometry.kernel[1]

    def stages(self) -> list[Stage]:
        v = (self.diagonal()[:, None, None] * self.V)[:, :, None, :]
        u = self.U.transpose(1, 2)[..., None]
        return [Stage("V", v, "w", self.geometry.groups), Stage("U", u, "h", self.geometry.groups)]
