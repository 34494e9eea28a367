"""Binned regression: soft targets, the expectation, metrics against brute force, values out of range and unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.tasks.kinds.binned_regression import BinnedRegressionTask

RANGE = {"low": 1.0, "high": 101.0, "bins": 21}  # bins 5 years apart
OPTIONS = RANGE  # for the tests of all kinds


def task(loss: str | None = None, **options: Any) -> BinnedRegressionTask:
    spec = TargetSpec("scalar", unit="years", mean=33.0, std=20.0)
    config = TaskConfig(kind="binned_regression", loss=loss, options=RANGE | options)
    built = build_task("age", config, spec)
    assert isinstance(built, BinnedRegressionTask)
    return built


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1, 101), min_size=1, max_size=20))
def test_the_expectation_of_a_soft_target_is_the_target(values: list[float]) -> None:
    target = torch.tensor(values)
    shares = task().distribution(target)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(values)))
    assert (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 2).all()
    # float32: places up to 20 and values up to 101
    torch.testing.assert_close((shares * task().centers()).sum(1), target, rtol=1e-5, atol=1e-4)
    # what predicts that distribution decodes to the target
    decoded = task().decode(shares.clamp(min=1e-30).log())
    torch.testing.assert_close(decoded, target, rtol=1e-5, atol=1e-4)


def test_a_gaussian_target_has_the_deviation_that_was_asked_for() -> None:
    shares = task(sigma=8.0).distribution(torch.tensor([51.0, 48.0]))
    centers = task().centers()
    mean = (shares * centers).sum(1)
    deviation = (shares * (centers - mean[:, None]).square()).sum(1).sqrt()
    # far from the ends, and wider than the bins: what is cut off and between the bins is below 1e-6
    torch.testing.assert_close(mean, torch.tensor([51.0, 48.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(deviation, torch.tensor([8.0, 8.0]), rtol=1e-4, atol=0)


def test_bins_go_from_low_to_high_evenly() -> None:
    np.testing.assert_allclose(task().centers().numpy(), np.arange(1, 102, 5), rtol=1e-6)
    assert task().channels == 21


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 12))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(seed: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    output, target = (
        torch.randn(12, 21, generator=generator),
        120 * torch.rand(12, generator=generator),
    )
    target[3] = torch.nan
    metrics = task().metrics()
    for x, y in zip(torch.split(output, batch), torch.split(target, batch), strict=True):
        metrics.update(x, y)
    logits = output.double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (shares @ np.arange(1, 102, 5) - target.double().numpy())[np.arange(12) != 3]
    expected = {"mae": np.abs(error).mean(), "rmse": np.sqrt((error**2).mean())}
    assert metrics.compute() == pytest.approx(expected, rel=1e-5)  # the expectation is float32


def test_the_loss_is_least_at_the_soft_target() -> None:
    target = torch.tensor([33.0])
    best = task().distribution(target).clamp(min=1e-30).log()
    least = task().loss(best, target).item()
    assert least == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)), rel=1e-5)  # its entropy
    for seed in range(5):
        other = best + 0.1 * torch.randn(1, 21, generator=torch.Generator().manual_seed(seed))
        assert task().loss(other, target).item() > least


def test_the_error_of_the_expectation_is_added_in_standard_deviations() -> None:
    output, target = torch.zeros(1, 21), torch.tensor([81.0])  # the expectation of even shares is 51
    plain = task().loss(output, target).item()
    assert task("cross_entropy_l1").loss(output, target).item() == pytest.approx(plain + 30 / 20)
    weighted = task("cross_entropy_l1", expectation_weight=0.5).loss(output, target).item()
    assert weighted == pytest.approx(plain + 15 / 20)


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_l1"])
def test_a_value_out_of_range_pulls_to_the_nearer_end(loss: str) -> None:
    output = torch.randn(2, 21, generator=torch.Generator().manual_seed(0))
    found = task(loss).loss(output, torch.tensor([-4.0, 116.0]))
    assert torch.equal(found, task(loss).loss(output, torch.tensor([1.0, 101.0])))


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_l1"])
@pytest.mark.parametrize("unknown", [float("nan"), float("inf")])
def test_an_unknown_target_reaches_neither_loss_nor_gradient(loss: str, unknown: float) -> None:
    output = torch.randn(2, 21, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = task(loss).loss(output, torch.tensor([20.0, unknown]))
    (gradient,) = torch.autograd.grad(value, output)
    assert torch.equal(value.detach(), task(loss).loss(output.detach()[:1], torch.tensor([20.0])))
    assert gradient[0].any()
    assert not gradient[1].any()


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output, target = torch.zeros(1, 21, requires_grad=True), torch.tensor([float("nan")])
    loss = task().loss(output, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = task().metrics()
    metrics.update(output.detach(), target)
    with pytest.raises(DataError, match="'age'"):
        metrics.compute()


def test_autocast_takes_nothing_from_the_expectation() -> None:
    output = torch.randn(4, 21, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = task().decode(output)
    assert torch.equal(found, task().decode(output))


def test_caption_has_the_unit() -> None:
    assert task().caption(np.array(31.24)) == "31.2 years"
    assert task().caption(np.array(np.nan)) == "unknown"
    assert task().metric_info["mae"].unit == "years"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 5.0}, r"options\.low"),
        ({"low": 5.0, "high": 5.0}, "low < high"),
        ({"low": 1.0, "high": 9.0, "bins": 1}, r"options\.bins"),
        ({"low": 1.0, "high": 9.0, "expectation_weight": 2.0}, "has no expectation_weight"),
    ],
)
def test_options_that_cannot_be_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task(
            "age", TaskConfig(kind="binned_regression", options=options), TargetSpec("scalar", unit="years")
        )
