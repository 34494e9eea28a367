"""The proximal operator of the group norm, plain and in the metric of an adaptive optimizer.

For a group z with metric D (a positive number for each element) and threshold t it solves

    argmin_x  ½ Σ D·(x − z)² + t·‖x‖.

The group is zero where ‖D∘z‖ ≤ t. Else x = z·Dθ/(Dθ + t), where θ = ‖x‖ solves f(θ) = Σ (Dz)²/(Dθ + t)² = 1.
With δ = D/t and α = D∘z/t this is Σ α²/(δθ + 1)² = 1. 1/√f is concave and increasing, so Newton on 1/√f − 1
from the lower bound θ₀ = (‖α‖ − 1)/max δ rises to the solution without overshoot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compactmtl.errors import TrainingError
from compactmtl.sparsity.slices import Slices, add, wide

MAX_STEPS = 100  # far beyond what metrics over sixteen decades take; a bound against an endless loop


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
    wides = [wide(s.parameter) for s in slices]
    scaled = [wide(d) * z for d, z in zip(metric, wides, strict=True)]
    norms = add(s.sums(v.square()) for s, v in zip(slices, scaled, strict=True)).sqrt()
    _check(norms, slices)
    thresholds = thresholds.to(norms)
    dead = norms <= thresholds
    # A threshold this far below the group changes nothing that the type can hold, and α² stays finite.
    thresholds = torch.maximum(thresholds, norms * (torch.finfo(norms.dtype).tiny ** 0.42))
    inverse = torch.where(dead, 0.0, 1 / thresholds)
    delta, alpha2 = [], []
    for s, d, v in zip(slices, metric, scaled, strict=True):
        per_slice = s.spread(inverse.to(v), 0.0)
        delta.append(wide(d) * per_slice)
        alpha2.append((v * per_slice).square())
    theta = _solve(slices, delta, alpha2, norms * inverse, dead)
    for s, d in zip(slices, delta, strict=True):
        reach = d * s.spread(theta.to(d), 0.0)
        factor = reach / (reach + 1)
        if s.partial:
            grouped = s.spread(torch.ones_like(theta, device=d.device), 0.0) > 0
            factor = torch.where(grouped, factor, 1.0)
        s.parameter.mul_(factor)
    return dead


def _solve(
    slices: Sequence[Slices], delta: Sequence[Tensor], alpha2: Sequence[Tensor], norms: Tensor, dead: Tensor
) -> Tensor:
    """θ of each group (n,); 0 for the dead."""
    largest = torch.stack(
        [s.maxima(d.expand_as(s.parameter)).to(norms) for s, d in zip(slices, delta, strict=True)]
    )
    theta = torch.where(dead, 0.0, (norms - 1) / largest.amax(0))
    tolerance = 4 * torch.finfo(theta.dtype).eps
    for _ in range(MAX_STEPS):
        f = torch.zeros_like(theta)
        half_slope = torch.zeros_like(theta)  # −f′/2
        for s, d, a in zip(slices, delta, alpha2, strict=True):
            shrink = 1 / (d * s.spread(theta.to(d), 0.0) + 1)
            term = a * shrink.square()
            f += s.sums(term).to(f)
            half_slope += s.sums(term * d * shrink).to(f)
        # Newton on 1/√f − 1. θ is below the solution, so f ≥ 1 but for rounding.
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
