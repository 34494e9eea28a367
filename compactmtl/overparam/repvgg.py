"""Convolutions with parallel branches, each normalized on its own. Source: arXiv:2101.03697 (RepVGG).

A branch's normalization keeps its mean where the layer has no bias: what follows such a layer is a norm of the
network's own, which takes away any constant, so the function in training is RepVGG's and contraction needs no
new parameter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.distributed.sums import moments
from compactmtl.overparam.factors import check_finite, normal
from compactmtl.overparam.geometry import Plain
from compactmtl.overparam.layer import OverparamLayer

EPS, MOMENTUM = 1e-5, 0.1  # those of torch's batch norm


class BranchNorm(nn.Module):
    """Batch normalization as a factor and a shift a channel, which contraction can put into a weight and a bias.

    `shifted` takes the mean away and adds a learned shift; without it the mean stays.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, like: Tensor, start: float, *, shifted: bool) -> None:
        super().__init__()
        channels = len(like)
        self.track_running_stats = True  # as in torch's norms: whether a batch moves the running statistics
        self.gamma = nn.Parameter(like.new_full((channels,), start))
        self.beta = nn.Parameter(like.new_zeros(channels)) if shifted else None
        self.register_buffer("running_mean", like.new_zeros(channels))
        self.register_buffer("running_var", like.new_ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W) by this batch's statistics and note them."""
        with torch.autocast(x.device.type, enabled=False):
            values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            mean, var, count = moments(values, (0, 2, 3))
            if self.track_running_stats:
                self._note(mean.detach(), var.detach(), count)
            factor = self.gamma * torch.rsqrt(var + EPS)
            shift = None if self.beta is None else (self.beta - factor * mean)[:, None, None]
        output = x * factor.to(x.dtype)[:, None, None]
        return output if shift is None else output + shift.to(x.dtype)

    def _note(self, mean: Tensor, var: Tensor, count: float | Tensor) -> None:
        alone = isinstance(count, float) and count <= 1
        unbiased = var if alone else var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), MOMENTUM)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The factor and the shift of evaluation, (C,) each."""
        factor = self.gamma * torch.rsqrt(self.running_var + EPS)
        return factor, None if self.beta is None else self.beta - factor * self.running_mean


class BranchLayer(OverparamLayer):
    """A kh×kw branch, a 1×1 branch, and the identity where the shapes allow it; each with a norm of its own.

    Evaluation contracts. In eval mode the function at the start is the plain layer's: the kh×kw branch has its
    weight, the factors of the others are 0. In training the branches are normalized by the batch, as in RepVGG.
    """

    def __init__(self, plain: Plain, rank: int = 0) -> None:
        """Add branches to the convolution `plain`. Raises ConfigError for a weight that is not finite."""
        super().__init__(plain, rank)
        check_finite(plain.weight)
        shape, weight = self.geometry, plain.weight.detach()
        trained, shifted = plain.weight.requires_grad, plain.bias is not None
        whole = (1 + EPS) ** 0.5  # so that the factor of a variance of 1 is 1
        self.K = nn.Parameter(weight.clone(), requires_grad=trained)
        self.norm = BranchNorm(weight, whole, shifted=shifted)
        point = normal(weight, shape.out, shape.inner, 1, 1) / shape.inner**0.5
        self.P = nn.Parameter(point, requires_grad=trained)
        self.point_norm = BranchNorm(weight, 0.0, shifted=shifted)
        same = shape.out == shape.inner * shape.groups and shape.stride == (1, 1)
        self.identity_norm = BranchNorm(weight, 0.0, shifted=shifted) if same else None
        for norm in self.norms():
            norm.requires_grad_(trained)

    @property
    def tap(self) -> tuple[int, int]:
        """The kernel's middle, where the 1×1 branch and the identity lie."""
        return self.geometry.kernel[0] // 2, self.geometry.kernel[1] // 2

    def norms(self) -> list[BranchNorm]:
        """The norms of the branches."""
        return [self.norm, self.point_norm, *([self.identity_norm] if self.identity_norm is not None else [])]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            if not torch.is_grad_enabled():
                return self.geometry.apply(x, self._contracted_weight(), self.deployed_bias())
            return self.geometry.apply(x, self.weight, self.deployed_bias())
        shape = self.geometry
        output: Tensor = self.norm(shape.apply(x, self.K, self.bias))
        middle = self._middle(x, output.shape)
        output = output + self.point_norm(F.conv2d(middle, self.P, groups=shape.groups))
        if self.identity_norm is not None:
            output = output + self.identity_norm(middle)
        return output

    def product(self) -> Tensor:
        shape, (y, x) = self.geometry, self.tap
        factor, _ = self.norm.folded()
        weight = factor[:, None, None, None] * self.K
        point, _ = self.point_norm.folded()
        middle = point[:, None] * self.P[..., 0, 0]
        if self.identity_norm is not None:
            identity, _ = self.identity_norm.folded()
            own = torch.arange(shape.out, device=weight.device) % shape.inner
            middle = middle + identity[:, None] * F.one_hot(own, shape.inner).to(middle)
        (kh, kw), spot = shape.kernel, middle[..., None, None]
        return weight + F.pad(spot, (x, kw - 1 - x, y, kh - 1 - y))

    def product_macs(self) -> int:
        return self.K.numel()

    def deployed_bias(self) -> Tensor | None:
        """The bias of the plain layer, the branches' shifts in it; none where the plain layer has none."""
        if self.bias is None:
            return None
        factor, shift = self.norm.folded()
        assert shift is not None  # it goes with the bias
        bias = factor * self.bias + shift
        for norm in self.norms()[1:]:
            _, more = norm.folded()
            assert more is not None
            bias = bias + more
        return bias

    def deployed(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.deployed_bias()

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, branches={len(self.norms())}"

    def _middle(self, x: Tensor, output: torch.Size) -> Tensor:
        """What the kernel's middle tap reads for every place of the output, (B, g·I, H', W')."""
        shape = self.geometry
        left, _, top, _ = shape.border
        (sh, sw), y, column = shape.stride, self.tap[0] * shape.dilation[0], self.tap[1] * shape.dilation[1]
        read = x[..., ::sh, ::sw]
        aligned = (y, column) == (top, left)
        if not aligned or read.shape[-2] < output[-2] or read.shape[-1] < output[-1]:
            mode = "constant" if shape.padding_mode == "zeros" else shape.padding_mode
            padded = F.pad(x, shape.border, mode=mode) if any(shape.border) else x
            read = padded[..., y::sh, column::sw]
        return read[..., : output[-2], : output[-1]]
