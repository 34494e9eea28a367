"""Factors of a weight such that the product is the weight and every factor can learn. Source: arXiv:2308.13300."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError


def check_finite(weight: Tensor) -> None:
    """Raise ConfigError unless every value of a weight is a finite number; a meta tensor has no values."""
    if not weight.is_meta and not bool(torch.isfinite(weight).all()):
        raise ConfigError("the weight holds NaN or infinity", "load a sound checkpoint before factorizing")


def factors(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (g, m, r) and V (g, r, n) with U·V the best rank-r approximation of `matrices` (g, m, n).

    The square root of each singular value goes to either side. Where `rank` is larger than a matrix has
    dimensions, random columns of U meet zero rows of V: the product is the same and V's gradient is not zero.
    """
    g, m, n = matrices.shape
    if matrices.is_meta:  # shapes alone, for a checkpoint to be loaded into
        return matrices.new_empty(g, m, rank), matrices.new_empty(g, rank, n)
    pairs = [_factor(matrix, rank) for matrix in matrices]
    u = torch.stack([pair[0] for pair in pairs])
    v = torch.stack([pair[1] for pair in pairs])
    return u.to(matrices.device, matrices.dtype), v.to(matrices.device, matrices.dtype)


def basis(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns (m, r) that span the most of the columns of `matrix` (m, n); unit columns beyond m."""
    if matrix.is_meta:
        return matrix.new_empty(matrix.shape[0], rank)
    exact = matrix.to("cpu", torch.float64)
    vectors: Tensor = torch.linalg.eigh(exact @ exact.T).eigenvectors.flip(1)[:, :rank]
    if rank > matrix.shape[0]:
        vectors = torch.cat([vectors, _unit_columns(matrix.shape[0], rank - matrix.shape[0])], 1)
    return vectors.to(matrix.device, matrix.dtype)


def orthonormal_columns(rows: int, columns: int, like: Tensor) -> Tensor:
    """Random orthonormal columns (rows, columns), columns <= rows, drawn from torch's global generator on the CPU."""
    if like.is_meta:
        return like.new_empty(rows, columns)
    drawn: Tensor = torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64)).Q
    return drawn.to(like.device, like.dtype)


def normal(like: Tensor, *shape: int) -> Tensor:
    """Standard normal values from torch's global generator on the CPU, of the type and on the device of `like`."""
    if like.is_meta:
        return like.new_empty(shape)
    return torch.randn(shape, dtype=torch.float64).to(like.device, like.dtype)


def _factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    # float64 on the CPU: half types have no SVD, and the factors should add no error of their own.
    exact = matrix.to("cpu", torch.float64)
    whole, (m, n) = min(matrix.shape), matrix.shape
    u, s, vh = _svd(exact, single=matrix.dtype != torch.float64)
    cut = min(rank, whole)
    u, s, vh = u[:, :cut], s[:cut], vh[:cut]
    noise = max(torch.finfo(matrix.dtype).eps, max(matrix.shape) * torch.finfo(torch.float64).eps)
    live = int((s > noise * s[0]).sum())
    root = s.sqrt()
    u, v = u * root, root[:, None] * vh
    if live < cut:
        # Where the singular value is 0 the gradients of U, V and M would all vanish for ever. With
        # orthonormal columns in U and zeros in V the product is the same and V's gradient is not 0.
        u[:, live:] = _orthonormal_beside(u[:, :live], cut - live)
        v[live:] = 0
    if rank > whole:
        u = torch.cat([u, _unit_columns(m, rank - whole)], 1)
        v = torch.cat([v, v.new_zeros(rank - whole, n)])
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


def _orthonormal_beside(columns: Tensor, count: int) -> Tensor:
    """Random orthonormal columns (m, count), orthogonal to the independent columns (m, k)."""
    span = torch.linalg.qr(columns).Q
    drawn: Tensor = torch.randn(columns.shape[0], count, dtype=columns.dtype)
    for _ in range(2):  # a second projection removes what rounding left of the first
        drawn = torch.linalg.qr(drawn - span @ (span.T @ drawn)).Q
    return drawn


def _unit_columns(rows: int, count: int) -> Tensor:
    """Random columns of length 1 (rows, count)."""
    drawn = torch.randn(rows, count, dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=0)
