"""The proximal operator of the group norm, plain and in the metric of an adaptive optimizer.

For a group z with metric D (a number ≥ 0 for each element) and threshold t it solves

    argmin_x  ½ Σ D·(x − z)² + t·‖x‖.

The group is zero where ‖D∘z‖ ≤ t. Else x = z·θ/(θ + τ) with τ = t/D, where θ = ‖x‖ solves
f(θ) = Σ z²/(θ + τ)² = 1. 1/√f is concave and rises with θ, so Newton on 1/√f − 1 climbs from any lower bound
to the solution without overshoot. Two lower bounds: ‖z‖ − τ̄ with τ̄ = Σ z²τ / Σ z², by Jensen's inequality,
which is close where t is small and, where it is positive, proves the group alive; and (‖z/τ‖ − 1)·min τ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compactmtl.errors import TrainingError
from compactmtl.sparsity.slices import Slices, add, wide

MAX_STEPS = 100  # metrics that span twelve decades take 6; a bound against an endless loop
_LARGE = 1e18  # its square is finite in float32


def prox_(slices: Sequence[Slices], thresholds: Tensor) -> Tensor:
    """Shrink each group over all its `slices` in place: w ← w·max(0, 1 − t/‖w‖), thresholds t ≥ 0 (n,).

    Returns whether each group is now zero, bool (n,). Raises TrainingError where a norm is not finite.
    """
    norms = add(s.sums(wide(s.parameter).square()) for s in slices).sqrt()
    _check(norms, slices)
    thresholds = thresholds.to(norms)
    # A zero group divides 0 by 0 below; it is replaced by the second where.
    scale = torch.where(norms <= thresholds, 0.0, 1 - thresholds / norms)
    scale = torch.where(norms == 0, 0.0, scale)
    for s in slices:
        s.parameter.mul_(s.spread(scale.to(s.parameter), 1.0))
    return scale == 0


def adaptive_prox_(slices: Sequence[Slices], metric: Sequence[Tensor], thresholds: Tensor) -> Tensor:
    """Shrink each group over all its `slices` in place in the metric D, thresholds t > 0 (n,).

    `metric` holds D ≥ 0 for each of `slices`, in a shape that broadcasts over the parameter. Returns whether
    each group is now zero, bool (n,). Raises TrainingError where a value is not finite.
    """
    z = [wide(s.parameter) for s in slices]
    squares = [values.square() for values in z]
    total = add(s.sums(v) for s, v in zip(slices, squares, strict=True))
    _check(total, slices)
    tau = [_tau(s, d, thresholds.to(v)) for s, d, v in zip(slices, metric, z, strict=True)]
    mean = add(s.sums(v.mul_(t)) for s, v, t in zip(slices, squares, tau, strict=True)) / total
    theta = total.sqrt() - mean
    dead = torch.zeros_like(theta, dtype=torch.bool)
    unsure = ~(theta > 0)  # NaN too: a zero group, or D = 0 somewhere
    if unsure.any():
        pulls = (
            torch.div(v, t, out=work).clamp_(-_LARGE, _LARGE).square_()
            for v, t, work in zip(z, tau, squares, strict=True)
        )
        pull = add(s.sums(v) for s, v in zip(slices, pulls, strict=True)).sqrt()
        least = torch.stack([s.minima(t).to(pull) for s, t in zip(slices, tau, strict=True)]).amin(0)
        dead = unsure & (pull <= 1)
        theta = torch.where(unsure, (pull - 1) * least, theta)
    theta = _solve(slices, z, tau, squares, torch.where(dead, 0.0, theta), dead)
    for s, t in zip(slices, tau, strict=True):
        reach = s.spread(theta.to(t), 1.0)
        s.parameter.mul_(torch.div(reach, t.add_(reach), out=t))
    return dead


def _tau(s: Slices, d: Tensor, thresholds: Tensor) -> Tensor:
    """t/D in the parameter's shape, 0 outside all groups (where the factor θ/(θ + τ) is then 1)."""
    tau = s.spread(thresholds, 0.0) / wide(d).expand_as(s.parameter)
    if s.partial:  # D = 0 outside a group
        tau.nan_to_num_(nan=0.0, posinf=torch.inf)
    return tau


def _solve(
    slices: Sequence[Slices],
    z: Sequence[Tensor],
    tau: Sequence[Tensor],
    work: Sequence[Tensor],
    theta: Tensor,
    dead: Tensor,
) -> Tensor:
    """θ of each group (n,) from a lower bound; 0 for the dead. `work` is overwritten."""
    tolerance = 4 * torch.finfo(theta.dtype).eps
    beside = [torch.empty_like(t) for t in tau]
    for _ in range(MAX_STEPS):
        f = torch.zeros_like(theta)
        half_slope = torch.zeros_like(theta)  # −f′/2
        for s, v, t, term, q in zip(slices, z, tau, work, beside, strict=True):
            torch.add(t, s.spread(theta.to(t), 1.0), out=q)
            torch.div(v, q, out=term).square_()
            f += s.sums(term).to(f)
            half_slope += s.sums(term.div_(q)).to(f)
        # θ is below the solution, so f ≥ 1 but for rounding.
        step = torch.where(dead | (f <= 1 + tolerance), 0.0, (f.sqrt() - 1) * f / half_slope)
        if bool((step <= tolerance * theta).all()):
            return theta
        theta = theta + step
    raise TrainingError(
        f"the proximal step found no solution for {slices[0].name}",
        "the optimizer's second moments span too many orders of magnitude; raise its eps",
    )


def _check(norms: Tensor, slices: Sequence[Slices]) -> None:
    if not torch.isfinite(norms).all():
        names = ", ".join(s.name for s in slices)
        raise TrainingError(
            f"a channel group of {names} is not finite after the optimizer's step",
            "lower the learning rate or clip the gradients",
        )
