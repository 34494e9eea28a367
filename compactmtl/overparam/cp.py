"""Layers whose weight is a sum of outer products, the CP decomposition. Source: arXiv:1412.6553, in place of the SVD."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from compactmtl.overparam.factors import check_finite, factors, normal
from compactmtl.overparam.geometry import Geometry, Plain
from compactmtl.overparam.layer import FactorDims, OverparamLayer, Stage


class CpLayer(OverparamLayer):
    """W = Σ_r m_r · a_r ∘ b_r ∘ h_r ∘ w_r: a 1×1, a 1×kw and a kh×1 depthwise, and a 1×1 convolution.

    A (O, r), B (g·r, I), H (g·r, kh), W (g·r, kw), M (T, g·r). At full rank, kh·kw·min(O/g, I), the factors begin
    as the singular pairs of every tap of the kernel, so that their sum is the weight; a smaller rank keeps the
    pairs of largest singular value. (The best CP approximation is NP-hard; the pairs are orthogonal, and the
    factors train on.)
    """

    factor_dims: ClassVar[FactorDims] = {0: ("A", 0), 1: ("B", 1), 2: ("H", 1), 3: ("W", 1)}

    def __init__(self, plain: Plain, rank: int, tasks: int = 1) -> None:
        """Factorize `plain`; as SvdLayer."""
        super().__init__(plain, rank)
        shape, trained = self.geometry, plain.weight.requires_grad
        check_finite(plain.weight)
        weight = plain.weight.detach().view(shape.groups, shape.rows, shape.inner, *shape.kernel)
        terms = [self._terms(group, rank) for group in weight]
        a, b, h, w = (torch.cat([term[index] for term in terms]) for index in range(4))
        self.A = nn.Parameter(a, requires_grad=trained)
        self.B = nn.Parameter(b, requires_grad=trained)
        self.H = nn.Parameter(h, requires_grad=trained)
        self.W = nn.Parameter(w, requires_grad=trained)
        self.M = nn.Parameter(a.new_ones(tasks, shape.groups * rank), requires_grad=trained)

    @staticmethod
    def full_rank(geometry: Geometry) -> int:
        """A rank at which every weight of this shape can be written."""
        return geometry.kernel[0] * geometry.kernel[1] * min(geometry.rows, geometry.inner)

    @staticmethod
    def _terms(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Factors (o, r), (r, i), (r, kh), (r, kw) of the weight (o, i, kh, kw) of one convolution group."""
        o, i, kh, kw = weight.shape
        taps, pairs = kh * kw, min(o, i)
        u, v = factors(weight.permute(2, 3, 0, 1).reshape(taps, o, i), pairs)
        a, b = u.permute(1, 0, 2).reshape(o, taps * pairs), v.reshape(taps * pairs, i)
        h = torch.eye(kh, dtype=a.dtype, device=a.device).repeat_interleave(kw * pairs, 0)
        w = torch.eye(kw, dtype=a.dtype, device=a.device).repeat(kh, 1).repeat_interleave(pairs, 0)
        more = rank - taps * pairs
        if more < 0:
            if not weight.is_meta:
                kept = (b.norm(dim=1) * a.norm(dim=0)).argsort(descending=True, stable=True)[:rank]
                return a[:, kept], b[kept], h[kept], w[kept]
            return a[:, :rank], b[:rank], h[:rank], w[:rank]
        if more > 0:  # beyond full: B at zero keeps the sum, and learns
            a = torch.cat([a, normal(a, o, more) / o**0.5], 1)
            b = torch.cat([b, b.new_zeros(more, i)])
            h = torch.cat([h, normal(h, more, kh) / kh**0.5])
            w = torch.cat([w, normal(w, more, kw) / kw**0.5])
        return a, b, h, w

    def product(self) -> Tensor:
        shape = self.geometry
        (kh, kw), g, r = shape.kernel, shape.groups, self.rank
        # the Khatri-Rao products of either side, then one matrix product
        h = self.H.view(g, 1, r, kh).transpose(2, 3)
        outer = (self.A.view(g, shape.rows, 1, r) * h).reshape(g, shape.rows * kh, r)
        right = (self.diagonal()[:, None] * self.B)[:, :, None] * self.W[:, None, :]
        product = torch.bmm(outer, right.view(g, r, shape.inner * kw))
        return product.view(shape.out, kh, shape.inner, kw).transpose(1, 2).contiguous()

    def diagonal(self) -> Tensor:
        """The Hadamard product of the tasks' diagonals, (g·r,)."""
        return self.M[0] if len(self.M) == 1 else self.M.prod(0)

    def product_macs(self) -> int:
        return self.A.numel() * self.geometry.kernel[0] * self.geometry.inner * self.geometry.kernel[1]

    def stages(self) -> list[Stage]:
        (kh, kw), g = self.geometry.kernel, self.geometry.groups
        wide = g * self.rank
        b = (self.diagonal()[:, None] * self.B)[..., None, None]
        stages = [Stage("B", b, "", g)]
        if not self.geometry.linear:
            stages += [
                Stage("W", self.W.view(wide, 1, 1, kw), "w", wide),
                Stage("H", self.H.view(wide, 1, kh, 1), "h", wide),
            ]
        else:  # a linear layer's taps are numbers
            stages = [Stage("B", b * (self.W * self.H)[..., None, None], "", g)]
        return [*stages, Stage("A", self.A[..., None, None], "", g)]
