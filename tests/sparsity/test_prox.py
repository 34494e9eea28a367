"""The proximal operator solves its optimality conditions, whatever the metric's scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compactmtl.errors import TrainingError
from compactmtl.sparsity.prox import adaptive_prox_, prox_
from compactmtl.sparsity.slices import Slices

# What the project promises: relative to the larger of the threshold and the metric's pull at the start.
KKT = {torch.float32: 1e-5, torch.float64: 1e-12}


def family(
    shapes: list[tuple[int, ...]], n: int, dtype: torch.dtype, seed: int, decades: float
) -> list[Slices]:
    """Tensors with n groups along a dimension of theirs, of sizes that span `decades`."""
    generator = torch.Generator().manual_seed(seed)
    slices = []
    for index, shape in enumerate(shapes):
        dim = index % (len(shape) + 1)
        full = (*shape[:dim], n, *shape[dim:])
        values = torch.randn(full, generator=generator, dtype=torch.float64)
        values *= 10 ** (decades * (torch.rand(full, generator=generator, dtype=torch.float64) - 0.5))
        indices = np.random.default_rng(seed + index).permutation(n)[:, None].astype(np.int64)
        slices.append(Slices(f"w{index}", values.to(dtype), dim, indices, "producer"))
    return slices


def per_group(slices: list[Slices], values: list[Tensor]) -> list[Tensor]:
    """The elements of each group, flat, in float64."""
    n = len(slices[0]._indices)
    return [
        torch.cat(
            [
                v.double().movedim(s.dim, 0)[s._indices[i]].flatten()
                for s, v in zip(slices, values, strict=True)
            ]
        )
        for i in range(n)
    ]


def residual(x: Tensor, z: Tensor, d: Tensor, t: float) -> float:
    """How far x is from optimal, as a share of the larger of t and ‖Dz‖."""
    scale = max(t, float((d * z).norm()))
    if x.norm() == 0:
        return max(0.0, float((d * z).norm()) - t) / scale
    return float((d * (x - z) + t * x / x.norm()).norm()) / scale


def brute_force(z: Tensor, d: Tensor, t: float) -> Tensor:
    """θ by bisection in float64."""
    if (d * z).norm() <= t:
        return torch.zeros_like(z)
    low, high = 0.0, float(z.norm())
    for _ in range(200):
        middle = (low + high) / 2
        if ((d * z) ** 2 / (d * middle + t) ** 2).sum() > 1:
            low = middle
        else:
            high = middle
    return z * d * high / (d * high + t)


cases = st.fixed_dictionaries(
    {
        "shapes": st.lists(
            st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple), min_size=1, max_size=3
        ),
        "n": st.integers(1, 7),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "seed": st.integers(0, 1000),
        "decades": st.floats(0, 8),
    }
)


@given(case=cases, exponent=st.floats(-8, 3), spread=st.floats(0, 10), blank=st.booleans())
@settings(max_examples=150)
def test_adaptive_prox_meets_its_optimality_conditions(
    case: dict[str, object], exponent: float, spread: float, blank: bool
) -> None:
    slices = family(**case)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    metric = [
        10 ** (spread * (torch.rand(s.parameter.shape, generator=generator, dtype=s.parameter.dtype) - 0.9))
        for s in slices
    ]
    if blank:
        slices[0].parameter.movedim(slices[0].dim, 0)[0] = 0
    before = per_group(slices, [s.parameter.clone() for s in slices])
    scale = [float((d * z).norm()) for d, z in zip(per_group(slices, metric), before, strict=True)]
    # Around the point where groups die, and far from it.
    thresholds = torch.tensor([max(v, 1e-12) * 10**exponent for v in scale], dtype=slices[0].parameter.dtype)
    dead = adaptive_prox_(slices, metric, thresholds)
    after = per_group(slices, [s.parameter for s in slices])
    for x, z, d, t, gone in zip(
        after, before, per_group(slices, metric), thresholds.double(), dead, strict=True
    ):
        assert residual(x, z, d, float(t)) <= KKT[slices[0].parameter.dtype]
        assert bool(gone) == bool(x.norm() == 0) or x.norm() < 1e-30


@given(case=cases, exponent=st.floats(-3, 0.5), spread=st.floats(0, 8))
@settings(max_examples=30)
def test_adaptive_prox_equals_bisection(case: dict[str, object], exponent: float, spread: float) -> None:
    slices = family(**{**case, "dtype": torch.float64})  # type: ignore[arg-type]
    metric = [10 ** (spread * (torch.rand_like(s.parameter) - 0.5)) for s in slices]
    before = per_group(slices, [s.parameter.clone() for s in slices])
    d = per_group(slices, metric)
    thresholds = torch.stack([(a * b).norm() for a, b in zip(d, before, strict=True)]) * 10**exponent
    adaptive_prox_(slices, metric, thresholds)
    for x, z, m, t in zip(
        per_group(slices, [s.parameter for s in slices]), before, d, thresholds, strict=True
    ):
        # Bisection to the last bit of θ; both sides then round a handful of products.
        torch.testing.assert_close(x, brute_force(z, m, float(t)), rtol=1e-9, atol=1e-12 * float(z.norm()))


@given(case=cases, t=st.floats(0, 3))
def test_plain_prox_scales_each_group(case: dict[str, object], t: float) -> None:
    slices = family(**case)  # type: ignore[arg-type]
    before = per_group(slices, [s.parameter.clone() for s in slices])
    n = len(before)
    dead = prox_(slices, torch.full((n,), t, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    for x, z, gone in zip(per_group(slices, [s.parameter for s in slices]), before, dead, strict=True):
        assert residual(x, z, one, t) <= KKT[slices[0].parameter.dtype]
        assert bool(gone) == bool(x.norm() == 0)


def test_the_adaptive_prox_with_a_constant_metric_is_the_plain_one() -> None:
    plain, adaptive = (family([(3, 2), ()], 5, torch.float64, 3, 1.0) for _ in range(2))
    prox_(plain, torch.full((5,), 0.8 / 2.5, dtype=torch.float64))
    adaptive_prox_(
        adaptive, [torch.tensor(2.5, dtype=torch.float64)] * 2, torch.full((5,), 0.8, dtype=torch.float64)
    )
    for a, b in zip(plain, adaptive, strict=True):
        torch.testing.assert_close(a.parameter, b.parameter, rtol=1e-12, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1e-30, 1e-20, 1e-12])
def test_a_vanishing_threshold_changes_nothing(dtype: torch.dtype, threshold: float) -> None:
    slices = family([(64,)], 4, dtype, 0, 0.0)
    before = slices[0].parameter.clone()
    adaptive_prox_(slices, [torch.ones_like(before)], torch.full((4,), threshold))
    torch.testing.assert_close(slices[0].parameter, before, rtol=2e-7, atol=0)  # float32's last bit


def test_slices_outside_all_groups_are_left_alone() -> None:
    for adaptive in (False, True):
        values = torch.ones(4, 3)
        slices = [Slices("w", values, 0, np.array([[1], [3]]), "producer")]
        if adaptive:
            adaptive_prox_(slices, [torch.ones(4, 3)], torch.tensor([0.5, 9.0]))
        else:
            prox_(slices, torch.tensor([0.5, 9.0]))
        assert torch.equal(values[[0, 2]], torch.ones(2, 3))
        expected = 1 - 0.5 / math.sqrt(3)
        torch.testing.assert_close(values[1], torch.full((3,), expected))
        assert values[3].abs().max() == 0


def test_a_group_of_several_slices_dies_as_one() -> None:
    values = torch.ones(4, 3)
    dead = prox_([Slices("w", values, 0, np.array([[0, 2], [1, 3]]), "producer")], torch.tensor([9.0, 0.0]))
    assert dead.tolist() == [True, False]
    assert values.sum(1).tolist() == [0, 3, 0, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    values = torch.ones(2, 3)
    values[0, 0] = value
    slices = [Slices("conv.weight", values, 0, np.array([[0], [1]]), "producer")]
    with pytest.raises(TrainingError, match=r"conv\.weight"):
        prox_(slices, torch.tensor([0.1, 0.1]))
    with pytest.raises(TrainingError, match=r"conv\.weight"):
        adaptive_prox_(slices, [torch.ones(2, 3)], torch.tensor([0.1, 0.1]))
