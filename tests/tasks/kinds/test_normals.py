"""Normals: angles exact over all pixels of the split, loss on normalized vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.tasks.kinds.normals import NormalsMetrics, angles

TASK = build_task("normals", TaskConfig(kind="normals"), TargetSpec("normals"))


def rotated(degrees: list[float]) -> Tensor:
    """Unit normals (N, 3, 1, 1) at the given angles from (0, 0, -1)."""
    radians = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))
    zero = torch.zeros_like(radians)
    return torch.stack([radians.sin(), zero, -radians.cos()], dim=1)[:, :, None, None]


def facing(count: int) -> Tensor:
    return torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).repeat(count, 1, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 180), min_size=1, max_size=30), st.integers(1, 7), st.floats(0.01, 100))
def test_metrics_over_batches_equal_the_angles_that_were_put_in(
    degrees: list[float], batch: int, length: float
) -> None:
    metrics = TASK.metrics()
    outputs = length * rotated(degrees)
    for start in range(0, len(degrees), batch):
        part = outputs[start : start + batch]
        metrics.update(part, facing(len(part)))
    found = metrics.compute()
    # float32 angles: 180 * 2**-23 degrees, times a few operations
    assert found["mean_angle"] == pytest.approx(np.mean(degrees), abs=2e-4)
    assert found["median_angle"] == pytest.approx(np.median(degrees), abs=2e-4)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 180), min_size=1, max_size=60), st.integers(0, 60))
def test_parts_of_a_split_add_up_to_the_split(degrees: list[float], cut: int) -> None:
    outputs = rotated(degrees)
    whole, one, other = (TASK.metrics() for _ in range(3))
    assert isinstance(one, NormalsMetrics) and isinstance(other, NormalsMetrics)
    whole.update(outputs, facing(len(degrees)))
    one.update(outputs[:cut], facing(len(outputs[:cut])))
    other.update(outputs[cut:], facing(len(outputs[cut:])))
    one.merge(other)
    # the tail of a vector is computed by other instructions, so that an angle may differ by float32 rounding
    assert one.compute() == pytest.approx(whole.compute(), rel=1e-6, abs=1e-6)


def test_the_median_is_within_a_ten_thousandth_of_a_degree_and_the_rest_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = (torch.randn(4, 3, 40, 50, generator=generator) for _ in range(2))
    metrics = TASK.metrics()
    metrics.update(outputs, targets)
    found, exact = metrics.compute(), angles(outputs, targets).numpy()
    assert found["median_angle"] == pytest.approx(np.median(exact), abs=1e-4)
    assert found["mean_angle"] == pytest.approx(exact.mean(dtype=np.float64), rel=1e-12)
    for name, threshold in (("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30)):
        assert found[name] == (exact < threshold).mean()


def test_the_state_does_not_grow_with_the_split() -> None:
    metrics = TASK.metrics()
    sizes: set[int] = set()
    for count in (1, 5000):
        metrics.update(facing(count), facing(count))
        sizes.add(sum(np.asarray(value).nbytes for value in vars(metrics).values()))
    assert len(sizes) == 1
    assert metrics.compute()["median_angle"] == pytest.approx(0, abs=1e-4)


def test_an_output_that_is_no_number_leaves_no_mean_and_no_median() -> None:
    metrics = TASK.metrics()
    metrics.update(torch.cat([facing(3), torch.full((1, 3, 1, 1), torch.nan)]), facing(4))
    found = metrics.compute()
    assert np.isnan(found["mean_angle"]) and np.isnan(found["median_angle"])
    assert found["within_30"] == 0.75


def test_shares_within_the_thresholds() -> None:
    metrics = TASK.metrics()
    metrics.update(rotated([5.0, 11.0, 12.0, 23.0, 31.0]), facing(5))
    found = metrics.compute()
    assert (found["within_11_25"], found["within_22_5"], found["within_30"]) == pytest.approx((0.4, 0.6, 0.8))


@pytest.mark.parametrize("degrees", [0.0, 0.01, 0.001, 179.99])
def test_small_angles_are_not_lost_to_rounding(degrees: float) -> None:
    radians = np.deg2rad(degrees)
    a = torch.tensor([[np.sin(radians), 0, np.cos(radians)]], dtype=torch.float32)
    found = angles(a, torch.tensor([[0.0, 0.0, 1.0]])).item()
    # float32 near 180 degrees has steps of 1.5e-5
    assert found == pytest.approx(degrees, abs=3e-5)


def test_loss_is_one_minus_cosine_whatever_the_length() -> None:
    assert TASK.loss(3 * rotated([60.0]), facing(1)).item() == pytest.approx(0.5, abs=1e-6)
    assert TASK.loss(facing(2), facing(2)).item() == pytest.approx(0, abs=1e-6)


def test_unknown_pixels_count_nowhere() -> None:
    target = facing(4)
    target[2:] = 0
    output = rotated([10.0, 20.0, 90.0, 120.0]).requires_grad_()
    loss = TASK.loss(output, target)
    (gradient,) = torch.autograd.grad(loss, output)
    metrics = TASK.metrics()
    metrics.update(output.detach(), target)
    assert metrics.compute()["mean_angle"] == pytest.approx(15, abs=1e-4)
    assert torch.equal(gradient[2:], torch.zeros_like(output[2:]))
    assert (gradient[:2] != 0).any()


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output = rotated([10.0]).requires_grad_()
    loss = TASK.loss(output, torch.zeros(1, 3, 1, 1))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = TASK.metrics()
    metrics.update(output.detach(), torch.zeros(1, 3, 1, 1))
    with pytest.raises(DataError, match="'normals'"):
        metrics.compute()
    with pytest.raises(DataError):
        TASK.metrics().compute()


def test_decode_gives_unit_vectors() -> None:
    decoded = TASK.decode(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(decoded.norm(dim=1), torch.ones(2, 4, 4), atol=1e-6)  # float32 rounding


def test_angles_equal_the_arc_cosine_in_float64() -> None:
    a, b = torch.randn(2, 5, 3, 7, 2).unbind(0)
    expected = torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)))
    # float32 near 180 degrees has steps of 1.5e-5
    assert torch.allclose(angles(a, b).double(), expected, atol=1e-4)


def test_a_prediction_of_zeros_is_no_perfect_one() -> None:
    metrics = TASK.metrics()
    metrics.update(torch.zeros(2, 3, 1, 1), facing(2))
    assert metrics.compute()["mean_angle"] == 90
