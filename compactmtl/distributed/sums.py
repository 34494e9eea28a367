"""Sums over all processes that gradients go through, once and again: losses of a whole batch of which each has a part.

Source of the gradient of a sum over processes, which is the sum of the gradients: that of `torch.distributed.nn`. So each
process differentiates the loss that all have, and the mean of what they find is the gradient of the whole batch.

Where a batch passes in parts one after the other (`compactmtl.distributed.in_parts`) sums are over its parts as well, and the
gradients that the parts find are added up; statistics of batch norm are each part's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from compactmtl.distributed.in_parts import in_parts, over_parts
from compactmtl.distributed.processes import distributed, rank, reached, world

_depth = 0  # of `joined`


@contextmanager
def joined() -> Iterator[None]:
    """For a while losses, penalties and batch norm are of all processes' parts of a batch together.

    All must come by here with parts of the same batch. Alone nothing happens.
    """
    global _depth
    if not distributed():
        yield
        return
    plain = F.batch_norm
    _depth += 1
    try:
        # torch's norms and those of timm look it up when they are called
        F.batch_norm = _batch_norm
        yield
    finally:
        F.batch_norm = plain
        _depth -= 1


def is_joined() -> bool:
    """Whether sums are over all processes here."""
    return _depth > 0


class _AllSum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with reached():
            dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _AllSum.apply(gradients[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return _AllSum.apply(x), in_dims[0]


def summed(*values: Tensor) -> tuple[Tensor, ...]:
    """Each tensor's sum over the processes that are joined and the parts of a batch, in its own type; of a whole batch in one
    process the tensors themselves.

    They are sent as one, in float64: counts stay exact.
    """
    if not (is_joined() or in_parts()):
        return values
    flat = torch.cat([one.reshape(-1).double() for one in values])
    total = over_parts(_AllSum.apply(flat) if is_joined() else flat)
    parts, first = [], 0
    for one in values:
        part = total[first : first + one.numel()]
        parts.append(part.reshape(one.shape).to(one.dtype))
        first += one.numel()
    return tuple(parts)


def mean(values: Tensor) -> Tensor:
    """The mean of all elements, over all processes that are joined and all parts of a batch."""
    if not (is_joined() or in_parts()):
        return values.mean()
    total, count = summed(values.sum(), values.new_full((), values.numel(), dtype=torch.float64))
    return total / count.to(total.dtype)


def averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss that all processes have, each of its own part of the batch, as those of the whole batch.

    Where the batch passes in parts their gradients are added up. Followed by another gradient, which goes through. Of a whole
    batch in one process the gradients themselves.
    """
    if not (is_joined() or in_parts()):
        return list(gradients)
    flat = torch.cat([one.reshape(-1) for one in gradients])
    flat = over_parts(_AllSum.apply(flat) / world() if is_joined() else flat)
    parts = flat.split([one.numel() for one in gradients])  # type: ignore[no-untyped-call]
    return [part.view(one.shape) for part, one in zip(parts, gradients, strict=True)]


def moments(values: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, float | Tensor]:
    """The mean and the variance (1/n) along `axes`, and n, over all processes that are joined.

    Merged from each one's own, so that nothing is lost where the mean is far from 0. Source: Chan, Golub, LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances", 1979.
    """
    variance, average = torch.var_mean(values, tuple(axes), correction=0)
    number = values.numel() / average.numel()
    if not is_joined():
        return average, variance, number
    mine = torch.cat([average, variance, average.new_full((1,), number)])
    rows: Tensor = _AllSum.apply(
        torch.stack([mine if one == rank() else torch.zeros_like(mine) for one in range(world())])
    )
    size = average.numel()
    averages, variances, counts = rows[:, :size], rows[:, size : 2 * size], rows[:, 2 * size :]
    shares = counts / counts.sum()
    whole = (shares * averages).sum(0)
    return whole, (shares * (variances + (averages - whole).square())).sum(0), counts.sum()


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` by the statistics of all processes' parts; in eval mode torch's own."""
    if not training:
        return torch.batch_norm(
            input,
            weight,
            bias,
            running_mean,
            running_var,
            training,
            momentum,
            eps,
            torch.backends.cudnn.enabled,
        )
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    with torch.no_grad():
        average, variance, count = moments(values, _axes(values))
        if running_mean is not None:
            running_mean.lerp_(average.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))  # of 2 processes or more, with an image each
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    normalized: Tensor = _Normalized.apply(
        values, weight, bias, average, variance, torch.as_tensor(count), eps
    )
    return normalized.to(input.dtype)


def _axes(values: Tensor) -> list[int]:
    return [0, *range(2, values.ndim)]


class _Normalized(torch.autograd.Function):
    """Batch norm by given moments of the whole batch, whose gradient goes through the moments.

    In torch's own kernels, which pass over the values once where a formula of single operators does so eight times. Source
    of the gradient: Ioffe, Szegedy, "Batch normalization", 2015, with both of its sums taken over all processes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        average: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        return torch.batch_norm(
            values, weight, bias, average, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # a gradient of this gradient may be asked for: then it is a formula, which can be differentiated again
        (gradient,) = gradients
        values, weight, bias, average, variance, count = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _slopes(values, weight, bias, ctx.eps, gradient)
        else:
            found = _fast_slopes(values, weight, bias, average, variance, count, ctx.eps, gradient)
        wanted = ctx.needs_input_grad[:3]
        return (
            *(one if want else None for one, want in zip(found, wanted, strict=True)),
            None,
            None,
            None,
            None,
        )


def _slopes(
    values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of values, weight and bias."""
    average, variance, count = moments(values, _axes(values))  # anew, as the gradient goes through them
    inverse, places = torch.rsqrt(variance + eps), _places(values)
    standard = (values - average.view(places)) * inverse.view(places)
    by_weight, by_bias = (gradient * standard).sum(_axes(values)), gradient.sum(_axes(values))
    of_weight, of_bias = _AllSum.apply(torch.stack([by_weight, by_bias])) / count
    scale = inverse if weight is None else weight * inverse
    centered = gradient - of_bias.view(places) - standard * of_weight.view(places)
    return centered * scale.view(places), by_weight, by_bias


def _fast_slopes(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    average: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's kernel for fixed moments, and what goes through the moments added to it."""
    inverse, places = torch.rsqrt(variance + eps), _places(values)
    direct, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
        gradient, values, weight, average, variance, average, inverse, False, eps, [True, True, True]
    )
    of_weight, of_bias = _AllSum.apply(torch.stack([by_weight, by_bias])) / count
    scale = inverse if weight is None else weight * inverse
    slope = scale * inverse * of_weight
    shift = scale * of_bias - slope * average
    return direct.sub_(shift.view(places)).addcmul_(values, slope.view(places), value=-1), by_weight, by_bias


def _places(values: Tensor) -> tuple[int, ...]:
    """The shape of a number a channel beside `values`."""
    return (1, -1, *[1] * (values.ndim - 2))
