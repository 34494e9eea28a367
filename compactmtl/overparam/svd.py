"""Convolution and linear layers whose weight is U·diag(M)·V by the spatial SVD. Source: arXiv:2308.13300.

Shape suffixes: B batch, O output channels, I input channels (of one convolution group), H and W of the
map, kh and kw of the kernel, g convolution groups, r rank (of one convolution group), T diagonals.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.errors import ConfigError

FactorDims = dict[int, tuple[str, int]]


class FactorizedConv2d(nn.Module):
    """A 2-D convolution with weight W = U·diag(M)·V, a kh×1 and a 1×kw convolution around a diagonal.

    U (O, kh, r), V (g·r, I, kw), M (T, g·r): the T diagonals multiply (T is 1 under joint training).
    Each convolution group is a matrix product of its own. The weight is contracted first and convolved
    once, whatever the batch, so a zero row of U or column of V is an exactly zero slice of W.
    """

    # A dimension of the plain weight (O, I, kh, kw) lives in one dimension of one factor.
    factor_dims: ClassVar[FactorDims] = {0: ("U", 0), 1: ("V", 1), 2: ("U", 1), 3: ("V", 2)}

    def __init__(self, plain: nn.Conv2d, rank: int) -> None:
        """Factorize `plain`, the weight unchanged where `rank` is full, else its best approximation.

        Raises ConfigError for a rank outside 1..full or a weight that is not finite.
        """
        super().__init__()
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels
        self.kernel_size, self.stride, self.dilation = plain.kernel_size, plain.stride, plain.dilation
        self.padding, self.padding_mode, self.groups = plain.padding, plain.padding_mode, plain.groups
        self._border = plain._reversed_padding_repeated_twice
        self.rank = rank
        out, inner, kh, kw = plain.weight.shape
        g = self.groups
        matrices = plain.weight.detach().view(g, out // g, inner, kh, kw).transpose(2, 3)
        u, v = _factors(matrices.reshape(g, out // g * kh, inner * kw), rank)
        trained = plain.weight.requires_grad
        self.U = nn.Parameter(u.reshape(out, kh, rank), requires_grad=trained)
        self.M = nn.Parameter(u.new_ones(1, g * rank), requires_grad=trained)
        self.V = nn.Parameter(v.reshape(g * rank, inner, kw), requires_grad=trained)
        self.bias = plain.bias
        self.train(plain.training)

    @staticmethod
    def full_rank(plain: nn.Conv2d) -> int:
        """The rank at which every weight of `plain`'s shape can be written."""
        out, inner, kh, kw = plain.weight.shape
        return min(out // plain.groups * kh, inner * kw)

    @property
    def weight(self) -> Tensor:
        """The contracted weight (O, I, kh, kw)."""
        out, kh, r = self.U.shape
        _, inner, kw = self.V.shape
        g = self.groups
        u = self.U.reshape(g, out // g * kh, r)
        v = (self.M.prod(0).view(-1, 1, 1) * self.V).reshape(g, r, inner * kw)
        product = (u[0] @ v[0]) if g == 1 else torch.bmm(u, v)
        return product.view(out, kh, inner, kw).transpose(1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, g·I, H, W) with the contracted weight."""
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border, mode=self.padding_mode), 0
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def contracted(self) -> nn.Conv2d:
        """The plain layer with exactly the weight that forward uses."""
        plain = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        _fill(plain, self.weight, self.bias, trained=self.U.requires_grad)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, rank={self.rank}"
        )


class FactorizedLinear(nn.Module):
    """A linear layer with weight W = U·diag(M)·V: U (O, r), V (r, I), M (T, r)."""

    factor_dims: ClassVar[FactorDims] = {0: ("U", 0), 1: ("V", 1)}

    def __init__(self, plain: nn.Linear, rank: int) -> None:
        """Factorize `plain`; see FactorizedConv2d."""
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.rank = rank
        u, v = _factors(plain.weight.detach()[None], rank)
        trained = plain.weight.requires_grad
        self.U = nn.Parameter(u[0], requires_grad=trained)
        self.M = nn.Parameter(u.new_ones(1, rank), requires_grad=trained)
        self.V = nn.Parameter(v[0], requires_grad=trained)
        self.bias = plain.bias
        self.train(plain.training)

    @staticmethod
    def full_rank(plain: nn.Linear) -> int:
        """The rank at which every weight of `plain`'s shape can be written."""
        return min(plain.weight.shape)

    @property
    def weight(self) -> Tensor:
        """The contracted weight (O, I)."""
        return self.U @ (self.M.prod(0).view(-1, 1) * self.V)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., I) to (..., O)."""
        return F.linear(x, self.weight, self.bias)

    def contracted(self) -> nn.Linear:
        """The plain layer with exactly the weight that forward uses."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        _fill(plain, self.weight, self.bias, trained=self.U.requires_grad)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


def _fill(plain: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None, *, trained: bool) -> None:
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def _factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (g, m, r) and V (g, r, n) with U·V the best rank-r approximation of `matrices` (g, m, n).

    The square root of each singular value goes to either side.
    """
    full = min(matrices.shape[-2:])
    if not 1 <= rank <= full:
        raise ConfigError(f"rank {rank} is out of range", f"this layer takes ranks from 1 to {full}")
    g, m, n = matrices.shape
    if matrices.is_meta:  # shapes alone, for a checkpoint to be loaded into
        return matrices.new_empty(g, m, rank), matrices.new_empty(g, rank, n)
    if not torch.isfinite(matrices).all():
        raise ConfigError("the weight holds NaN or infinity", "load a sound checkpoint before factorizing")
    pairs = [_factor(matrix, rank) for matrix in matrices]
    u = torch.stack([pair[0] for pair in pairs])
    v = torch.stack([pair[1] for pair in pairs])
    return u.to(matrices.device, matrices.dtype), v.to(matrices.device, matrices.dtype)


def _factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    # float64 on the CPU: half types have no SVD, and the factors should add no error of their own.
    exact = matrix.to("cpu", torch.float64)
    u, s, vh = _svd(exact, single=matrix.dtype != torch.float64)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    noise = max(torch.finfo(matrix.dtype).eps, max(matrix.shape) * torch.finfo(torch.float64).eps)
    live = int((s > noise * s[0]).sum())
    root = s.sqrt()
    u, v = u * root, root[:, None] * vh
    if live < rank:
        # Where the singular value is 0 the gradients of U, V and M would all vanish for ever. With
        # orthonormal columns in U and zeros in V the product is the same and V's gradient is not 0.
        u[:, live:] = _orthonormal_beside(u[:, :live], rank - live)
        v[live:] = 0
    return u, v


def _svd(matrix: Tensor, *, single: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of a float64 matrix, by the eigenvectors of its Gram matrix where float32 will hold it.

    That takes a third of the time and U·S·Vᵀ is as exact, because V is orthonormal and U·S is the matrix times
    V. Singular values and columns of U lose digits only below 1e-7 of the largest, beneath float32's rounding.
    """
    if not single:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vh = _svd(matrix.T, single=True)
        return vh.T, s, u.T
    v = torch.linalg.eigh(matrix.T @ matrix).eigenvectors.flip(1)
    scaled = matrix @ v
    s = scaled.norm(dim=0)
    return scaled / s.clamp_min(torch.finfo(s.dtype).tiny), s, v.T


def _orthonormal_beside(basis: Tensor, count: int) -> Tensor:
    """Random orthonormal columns (m, count), orthogonal to the independent columns of `basis` (m, k)."""
    basis = torch.linalg.qr(basis).Q
    columns = torch.randn(basis.shape[0], count, dtype=basis.dtype)
    for _ in range(2):  # a second projection removes what rounding left of the first
        columns = torch.linalg.qr(columns - basis @ (basis.T @ columns)).Q
    return columns
