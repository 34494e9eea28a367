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
from compactmtl.sparsity.grouped_tensor import GroupedTensor, Scratch
from compactmtl.sparsity.prox import Metric, adaptive_prox_, firm_prox_, prox_, soft_threshold_

# What the project promises: relative to the larger of the threshold and the metric's pull at the start.
KKT = {torch.float32: 1e-5, torch.float64: 1e-12}


def family(
    shapes: list[tuple[int, ...]], n: int, dtype: torch.dtype, seed: int, decades: float
) -> list[GroupedTensor]:
    """Tensors with n groups along a dimension of theirs, of sizes that span `decades`."""
    generator = torch.Generator().manual_seed(seed)
    slices = []
    for index, shape in enumerate(shapes):
        dim = index % (len(shape) + 1)
        full = (*shape[:dim], n, *shape[dim:])
        values = torch.randn(full, generator=generator, dtype=torch.float64)
        values *= 10 ** (decades * (torch.rand(full, generator=generator, dtype=torch.float64) - 0.5))
        indices = np.random.default_rng(seed + index).permutation(n)[:, None].astype(np.int64)
        slices.append(GroupedTensor(f"w{index}", values.to(dtype), dim, indices, "producer"))
    return slices


def per_group(slices: list[GroupedTensor], values: list[Tensor]) -> list[Tensor]:
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


@pytest.mark.slow
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
    dead = adaptive_prox_(slices, [Metric(d / 4, 4.0) for d in metric], thresholds, Scratch())
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
    adaptive_prox_(slices, [Metric(d) for d in metric], thresholds)
    for x, z, m, t in zip(
        per_group(slices, [s.parameter for s in slices]), before, d, thresholds, strict=True
    ):
        # Bisection to the last bit of θ; both sides then round a handful of products.
        torch.testing.assert_close(x, brute_force(z, m, float(t)), rtol=1e-9, atol=1e-12 * float(z.norm()))


@pytest.mark.slow
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
        adaptive,
        [Metric(torch.tensor(2.5, dtype=torch.float64))] * 2,
        torch.full((5,), 0.8, dtype=torch.float64),
    )
    for a, b in zip(plain, adaptive, strict=True):
        torch.testing.assert_close(a.parameter, b.parameter, rtol=1e-12, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 1e-30, 1e-20, 1e-12])
def test_a_vanishing_threshold_changes_nothing(dtype: torch.dtype, threshold: float) -> None:
    slices = family([(64,)], 4, dtype, 0, 0.0)
    before = slices[0].parameter.clone()
    adaptive_prox_(slices, [Metric(torch.ones_like(before))], torch.full((4,), threshold))
    torch.testing.assert_close(slices[0].parameter, before, rtol=2e-7, atol=0)  # float32's last bit


def test_slices_outside_all_groups_are_left_alone() -> None:
    for adaptive in (False, True):
        values = torch.ones(4, 3)
        slices = [GroupedTensor("w", values, 0, np.array([[1], [3]]), "producer")]
        if adaptive:
            adaptive_prox_(slices, [Metric(torch.ones(4, 3))], torch.tensor([0.5, 9.0]))
        else:
            prox_(slices, torch.tensor([0.5, 9.0]))
        assert torch.equal(values[[0, 2]], torch.ones(2, 3))
        expected = 1 - 0.5 / math.sqrt(3)
        torch.testing.assert_close(values[1], torch.full((3,), expected))
        assert values[3].abs().max() == 0


def test_a_group_of_several_slices_dies_as_one() -> None:
    values = torch.ones(4, 3)
    dead = prox_(
        [GroupedTensor("w", values, 0, np.array([[0, 2], [1, 3]]), "producer")], torch.tensor([9.0, 0.0])
    )
    assert dead.tolist() == [True, False]
    assert values.sum(1).tolist() == [0, 3, 0, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value: float) -> None:
    values = torch.ones(2, 3)
    values[0, 0] = value
    slices = [GroupedTensor("conv.weight", values, 0, np.array([[0], [1]]), "producer")]
    with pytest.raises(TrainingError, match=r"conv\.weight"):
        prox_(slices, torch.tensor([0.1, 0.1]))
    with pytest.raises(TrainingError, match=r"conv\.weight"):
        adaptive_prox_(slices, [Metric(torch.ones(2, 3))], torch.tensor([0.1, 0.1]))


def metric_of(slices: list[GroupedTensor], spread: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        10 ** (spread * (torch.rand(s.parameter.shape, generator=generator, dtype=s.parameter.dtype) - 0.9))
        for s in slices
    ]


@given(
    case=cases,
    single=st.floats(-3, 1),
    whole=st.floats(-3, 1),
    spread=st.floats(0, 6),
    plain=st.booleans(),
)
@settings(max_examples=50)
def test_sparse_group_lasso_meets_its_optimality_conditions(
    case: dict[str, object], single: float, whole: float, spread: float, plain: bool
) -> None:
    slices = family(**case)  # type: ignore[arg-type]
    dtype = slices[0].parameter.dtype
    metric = [torch.ones_like(s.parameter) for s in slices] if plain else metric_of(slices, spread)
    before = per_group(slices, [s.parameter.clone() for s in slices])
    d = per_group(slices, metric)
    scale = torch.stack([(a * b).norm() for a, b in zip(d, before, strict=True)]).clamp_min(1e-12)
    t1 = (scale * 10**single / max(len(d[0]), 1) ** 0.5).to(dtype)
    t2 = (scale * 10**whole).to(dtype)
    given = None if plain else [Metric(one) for one in metric]
    soft_threshold_(slices, given, t1)
    dead = prox_(slices, t2) if given is None else adaptive_prox_(slices, given, t2)
    after = per_group(slices, [s.parameter for s in slices])
    for x, z, m, a, b, gone in zip(after, before, d, t1.double(), t2.double(), dead, strict=True):
        size = max(float((m * z).norm()), float(b))
        soft = torch.sign(m * z) * (m * z.abs() - a).clamp_min(0)
        if x.norm() == 0:
            # zero is optimal where what the l1 part leaves of the pull is at most the group's threshold
            assert float(soft.norm()) <= float(b) + KKT[dtype] * size
            continue
        gradient = m * (x - z) + b * x / x.norm()
        live = x != 0
        assert float((gradient + a * torch.sign(x))[live].norm()) <= KKT[dtype] * size
        assert float((gradient[~live].abs() - a).clamp_min(0).norm()) <= KKT[dtype] * size
        assert not gone


@pytest.mark.slow
@given(
    case=cases, exponent=st.floats(-3, 1), knee=st.floats(-1, 1), spread=st.floats(0, 4), plain=st.booleans()
)
@settings(max_examples=50)
def test_group_mcp_is_stationary_and_beats_every_other_point(
    case: dict[str, object], exponent: float, knee: float, spread: float, plain: bool
) -> None:
    slices = family(**{**case, "decades": min(float(case["decades"]), 2)})  # type: ignore[arg-type]
    dtype = slices[0].parameter.dtype
    metric = [torch.ones_like(s.parameter) for s in slices] if plain else metric_of(slices, spread)
    before = per_group(slices, [s.parameter.clone() for s in slices])
    d = per_group(slices, metric)
    rate = 0.1
    scale = torch.stack([(a * b).norm() for a, b in zip(d, before, strict=True)]).clamp_min(1e-12)
    slopes = (scale * 10**exponent).to(dtype)
    knees = (torch.stack([z.norm() for z in before]).clamp_min(1e-6) * 10**knee).to(dtype)
    firm_prox_(slices, None if plain else [Metric(m / 3, 3.0) for m in metric], rate, slopes, knees)
    after = per_group(slices, [s.parameter for s in slices])
    for x, z, m, slope, k in zip(after, before, d, slopes.double(), knees.double(), strict=True):
        t = rate * float(slope)
        size = max(float((m * z).norm()), t)
        if z.norm() >= k * (1 + 1e-6):
            torch.testing.assert_close(x, z, rtol=1e-6, atol=0)
            continue
        curved = t / float(k)
        if curved > 0.9 * float(m.min()):
            continue  # linearized: the next test
        if x.norm() == 0:
            assert float((m * z).norm()) <= t * (1 + 1e-5)
            continue
        pull = t * max(0.0, 1 - float(x.norm() / k))
        # the bend takes D − c, which loses digits where c is near D: at most a factor of 10 here
        assert float((m * (x - z) + pull * x / x.norm()).norm()) <= 20 * KKT[dtype] * size


def test_group_mcp_is_linearized_where_it_has_several_solutions() -> None:
    for metric in (None, [Metric(torch.ones(2, 3))]):
        values = torch.ones(2, 3)
        norm = math.sqrt(3)
        slices = [GroupedTensor("w", values, 0, np.array([[0], [1]]), "producer")]
        # the second's rate·slope/knee is above D = 1
        firm_prox_(slices, metric, 1.0, torch.tensor([0.5, 4.0]), torch.tensor([2.0, 2.0]))
        expected = (norm - 0.5) / norm / (1 - 0.25)
        torch.testing.assert_close(values[0], torch.full((3,), expected))
        tangent = 4 * (1 - norm / 2)
        torch.testing.assert_close(values[1], torch.full((3,), 1 - tangent / norm))


def test_an_exempt_zero_group_stays_zero() -> None:
    values = torch.zeros(2, 3)
    values[1] = 1
    slices = [GroupedTensor("w", values, 0, np.array([[0], [1]]), "producer")]
    dead = adaptive_prox_(slices, [Metric(torch.zeros(2, 3) + 1e-8)], torch.tensor([0.0, 0.0]))
    assert dead.tolist() == [True, False]
    assert torch.equal(values, torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_scratch_is_used_again_and_never_twice_at_once() -> None:
    scratch = Scratch()
    for _ in range(3):
        scratch.clear()
        one, other = (scratch.take(torch.ones(4, 3)) for _ in range(2))
        one.fill_(1)
        other.fill_(2)
        assert one.eq(1).all()
    assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    turned = scratch.take(torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
    assert turned.is_contiguous(memory_format=torch.channels_last)
