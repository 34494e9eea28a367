"""Proximal operators of group penalties, plain and in the metric of an adaptive optimizer.

For a group z with metric D (a number ≥ 0 for each element) and threshold t the group norm's solves

    argmin_x  ½ Σ D·(x − z)² + t·‖x‖.

The group is zero where ‖D∘z‖ ≤ t. Else x = z·θ/(θ + τ) with τ = t/D, where θ = ‖x‖ solves
f(θ) = Σ z²/(θ + τ)² = 1. 1/√f is concave and rises with θ, so Newton on 1/√f − 1 climbs from any lower bound
to the solution without overshoot. Two lower bounds: ‖z‖ − τ̄ with τ̄ = Σ z²τ / Σ z², by Jensen's inequality,
which is close where t is small and, where it is positive, proves the group alive; and (‖z/τ‖ − 1)·min τ.

An l1 part added to it (sparse group lasso) is a soft threshold before; a concave part −c‖x‖²/2 (group MCP) is
the same operator at z·D/(D − c) in the metric D − c, as long as that is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compactmtl.errors import TrainingError
from compactmtl.sparsity.grouped_tensor import GroupedTensor, Scratch, add, at_least_float32
from compactmtl.sparsity.questions import Asking, answered

MAX_STEPS = 100  # metrics that span twelve decades take 6; a bound against an endless loop
_LARGE = 1e18  # its square is finite in float32


@dataclass(frozen=True)
class Metric:
    """D = scale·values ≥ 0 of one tensor; the values' shape broadcasts over it.

    `owned` values may be overwritten.
    """

    values: Tensor
    scale: float = 1.0
    owned: bool = False

    def on(self, s: GroupedTensor) -> Tensor:
        """The values in the parameter's shape."""
        return at_least_float32(self.values).expand_as(s.parameter)


def prox_(tensors: Sequence[GroupedTensor], thresholds: Tensor) -> Tensor:
    """Shrink each group over all its `tensors` in place: w ← w·max(0, 1 − t/‖w‖), thresholds t ≥ 0 (n,).

    Returns whether each group is now zero, bool (n,). Raises TrainingError where a norm is not finite.
    """
    return answered(prox_asking(tensors, thresholds))


def prox_asking(tensors: Sequence[GroupedTensor], thresholds: Tensor) -> Asking[Tensor]:
    """`prox_`, which asks once."""
    norms = _norms(tensors)
    yield from _finite(norms, tensors)
    thresholds = thresholds.to(norms)
    # A zero group divides 0 by 0 below; it is replaced by the second where.
    scale = torch.where(norms <= thresholds, 0.0, 1 - thresholds / norms)
    return scale_(tensors, torch.where(norms == 0, 0.0, scale))


def scale_(tensors: Sequence[GroupedTensor], scale: Tensor) -> Tensor:
    """Multiply each group by its `scale` (n,) in place; returns where that is 0, bool (n,)."""
    for s in tensors:
        s.parameter.mul_(s.spread(scale.to(s.parameter), 1.0))
    return scale == 0


def group_norms(tensors: Sequence[GroupedTensor]) -> Tensor:
    """The norm of each group over all its `tensors`, (n,). Raises TrainingError where one is not finite."""
    norms = _norms(tensors)
    answered(_finite(norms, tensors))
    return norms


def _norms(tensors: Sequence[GroupedTensor]) -> Tensor:
    return add(s.squares(at_least_float32(s.parameter)) for s in tensors).sqrt()


def soft_threshold_(
    tensors: Sequence[GroupedTensor], metric: Sequence[Metric] | None, thresholds: Tensor
) -> None:
    """Take t/D off the magnitude of every element in place, down to zero; thresholds t ≥ 0 (n,), D = 1 without metric."""
    for index, s in enumerate(tensors):
        bound = s.spread(thresholds.to(at_least_float32(s.parameter)), 0.0)
        if metric is not None:
            bound = bound / metric[index].scale / metric[index].on(s)
            if s.partial:  # 0/0 outside all groups
                bound.nan_to_num_(nan=0.0, posinf=torch.inf)
        values = at_least_float32(s.parameter)
        s.parameter.sub_(torch.clamp(values, -bound, bound))


def adaptive_prox_(
    tensors: Sequence[GroupedTensor],
    metric: Sequence[Metric],
    thresholds: Tensor,
    scratch: Scratch | None = None,
) -> Tensor:
    """Shrink each group over all its `tensors` in place in the metric D, thresholds t ≥ 0 (n,).

    `metric` holds D for each of `tensors`. Intermediate tensors lie in `scratch`, where there is one. Returns whether
    each group is now zero, bool (n,). Raises TrainingError where a value is not finite.
    """
    return answered(adaptive_prox_asking(tensors, metric, thresholds, scratch))


def adaptive_prox_asking(
    tensors: Sequence[GroupedTensor],
    metric: Sequence[Metric],
    thresholds: Tensor,
    scratch: Scratch | None = None,
) -> Asking[Tensor]:
    """`adaptive_prox_`, which asks twice and once for each of Newton's steps."""
    scratch = scratch or Scratch()
    z = [at_least_float32(s.parameter) for s in tensors]
    total = add(s.squares(v) for s, v in zip(tensors, z, strict=True))
    zero = torch.cat([(thresholds.to(total.device, kind) == 0) for kind in {v.dtype for v in z}]).any()
    finite, some_zero = yield torch.stack([torch.isfinite(total).all(), zero])
    if not finite:
        raise _not_finite(tensors)
    tau = [
        _tau(s, d, thresholds.to(v), d.values if d.owned else scratch.take(v), some_zero)
        for s, d, v in zip(tensors, metric, z, strict=True)
    ]
    work = [torch.mul(v, t, out=scratch.take(v)) for v, t in zip(z, tau, strict=True)]
    mean = add(s.sums(w.mul_(v)) for s, v, w in zip(tensors, z, work, strict=True)) / total
    theta = total.sqrt() - mean
    blank = total == 0
    dead = blank
    unsure = ~(theta > 0) & ~blank  # NaN too: D = 0 somewhere
    (some_unsure,) = yield unsure.any()[None]
    if some_unsure:
        # 0/0: an element at zero that nothing pulls
        pulls = (
            torch.div(v, t, out=w).nan_to_num_(nan=0.0).clamp_(-_LARGE, _LARGE)
            for v, t, w in zip(z, tau, work, strict=True)
        )
        pull = add(s.squares(w) for s, w in zip(tensors, pulls, strict=True)).sqrt()
        least = torch.stack([s.minima(t).to(pull) for s, t in zip(tensors, tau, strict=True)]).amin(0)
        dead = blank | (unsure & (pull <= 1))
        theta = torch.where(unsure, (pull - 1) * least, theta)
    beside = [scratch.take(v) for v in z]
    theta = yield from _solve(tensors, z, tau, (work, beside), torch.where(dead, 0.0, theta), dead)
    theta = torch.where(blank, 1.0, theta)  # 0 stays 0, and 0/0 does not arise where t is 0
    for s, t in zip(tensors, tau, strict=True):
        reach = s.spread(theta.to(t), 1.0)
        s.parameter.mul_(torch.div(reach, t.add_(reach), out=t))
    return dead


def firm_prox_(
    tensors: Sequence[GroupedTensor],
    metric: Sequence[Metric] | None,
    rate: float,
    slopes: Tensor,
    knees: Tensor,
    scratch: Scratch | None = None,
) -> Tensor:
    """The group MCP's step in place: argmin ½ Σ D·(x − z)² + rate·ρ(‖x‖), ρ′(r) = slope·max(0, 1 − r/knee).

    `slopes` ≥ 0 and `knees` > 0 are (n,), `metric` is D, 1 where there is none. A group beyond its knee stays. The
    problem has one solution where rate·slope/knee < D for all of a group; where that fails, ρ is replaced by its
    tangent at ‖z‖. Returns whether each group is now zero, bool (n,).
    """
    return answered(firm_prox_asking(tensors, metric, rate, slopes, knees, scratch))


def firm_prox_asking(
    tensors: Sequence[GroupedTensor],
    metric: Sequence[Metric] | None,
    rate: float,
    slopes: Tensor,
    knees: Tensor,
    scratch: Scratch | None = None,
) -> Asking[Tensor]:
    """`firm_prox_`, which asks once more than what it calls."""
    norms = _norms(tensors)
    yield from _finite(norms, tensors)
    slopes, knees = slopes.to(norms), knees.to(norms)
    curvature = rate * slopes / knees
    if metric is None:
        single = curvature < 1
        inside = norms < knees
        tangent = rate * slopes * torch.clamp_min(1 - norms / knees, 0.0)
        thresholds = torch.where(single, rate * slopes, tangent)
        bend = torch.where(single, curvature, 0.0)
        scale = torch.clamp_min(1 - thresholds / norms, 0.0) / (1 - bend)
        scale = torch.where(inside, scale, 1.0)
        return scale_(tensors, torch.where(norms == 0, 0.0, scale))
    inside = norms < knees
    least = torch.stack(
        [s.minima(d.on(s)).to(norms) * d.scale for s, d in zip(tensors, metric, strict=True)]
    ).amin(0)
    single = curvature < least
    tangent = rate * slopes * torch.clamp_min(1 - norms / knees, 0.0)
    thresholds = torch.where(single, rate * slopes, tangent)
    thresholds = torch.where(inside, thresholds, 0.0)
    bend = torch.where(single & inside, curvature, 0.0)
    bent = []
    for s, d in zip(tensors, metric, strict=True):
        values = d.on(s)
        less = values - s.spread((bend / d.scale).to(values), 0.0)
        ratio = values / less
        # 0/0: D = 0 outside all groups, or where nothing bends
        s.parameter.mul_(ratio.nan_to_num_(nan=1.0))
        bent.append(Metric(less, d.scale, owned=True))
    return (yield from adaptive_prox_asking(tensors, bent, thresholds, scratch))


def _tau(s: GroupedTensor, d: Metric, thresholds: Tensor, out: Tensor, some_zero: bool) -> Tensor:
    """t/D in the parameter's shape, 0 where t is (where the factor θ/(θ + τ) is then 1), as outside all groups.

    `some_zero` says whether a threshold is 0.
    """
    tau = torch.div(s.spread(thresholds / d.scale, 0.0), d.on(s), out=out)
    # 0/0 where D is 0 too: outside a group, or where nothing pulls
    if s.partial or some_zero:
        tau.nan_to_num_(nan=0.0, posinf=torch.inf)
    return tau


def _solve(
    tensors: Sequence[GroupedTensor],
    z: Sequence[Tensor],
    tau: Sequence[Tensor],
    work: tuple[Sequence[Tensor], Sequence[Tensor]],
    theta: Tensor,
    dead: Tensor,
) -> Asking[Tensor]:
    """θ of each group (n,) from a lower bound; 0 for the dead. Both tensors of `work` are overwritten."""
    epsilon = torch.finfo(theta.dtype).eps
    tolerance = 4 * epsilon
    # Newton's error after a step δ is below 1.5·δ²/θ: no second look is needed to know that it is in the last digit.
    enough = (epsilon / 3) ** 0.5
    for _ in range(MAX_STEPS):
        f = torch.zeros_like(theta)
        half_slope = torch.zeros_like(theta)  # −f′/2
        for s, v, t, term, q in zip(tensors, z, tau, *work, strict=True):
            torch.add(t, s.spread(theta.to(t), 1.0), out=q)
            torch.div(v, q, out=term)
            f += s.squares(term).to(f)
            half_slope += s.sums(term.mul_(torch.div(term, q, out=q))).to(f)
        # θ is below the solution, so f ≥ 1 but for rounding.
        step = torch.where(dead | (f <= 1 + tolerance), 0.0, (f.sqrt() - 1) * f / half_slope)
        theta = theta + step
        (done,) = yield (step <= enough * theta).all()[None]
        if done:
            return theta
    raise TrainingError(
        f"the proximal step found no solution for {tensors[0].name}",
        "the optimizer's second moments span too many orders of magnitude; raise its eps",
    )


def _finite(norms: Tensor, tensors: Sequence[GroupedTensor]) -> Asking[None]:
    """Raise TrainingError naming the tensors where the norm of a group is not finite."""
    (finite,) = yield torch.isfinite(norms).all()[None]
    if not finite:
        raise _not_finite(tensors)


def _not_finite(tensors: Sequence[GroupedTensor]) -> TrainingError:
    names = ", ".join(s.name for s in tensors)
    return TrainingError(
        f"a channel group of {names} is not finite after the optimizer's step",
        "lower the learning rate or clip the gradients",
    )
