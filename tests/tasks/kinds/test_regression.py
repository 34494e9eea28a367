"""Regression: losses in standard deviations, metrics in the unit, unknown values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, Task, build_task


def task(std: float = 20.0, **config: Any) -> Task:
    spec = TargetSpec("scalar", unit="years", mean=33.0, std=std)
    return build_task("age", TaskConfig(kind="regression", **config), spec)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.integers(1, 9))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(errors: list[float], batch: int) -> None:
    target = torch.linspace(1, 90, len(errors))
    output = (target + torch.tensor(errors, dtype=torch.float32))[:, None]
    metrics = task().metrics()
    for start in range(0, len(errors), batch):
        metrics.update(output[start : start + batch], target[start : start + batch])
    true = output[:, 0].double().numpy() - target.double().numpy()
    expected = {"mae": np.abs(true).mean(), "rmse": np.sqrt((true**2).mean())}
    assert metrics.compute() == pytest.approx(expected, rel=1e-9, abs=1e-9)  # both sum in float64


@pytest.mark.parametrize(
    ("loss", "expected"), [("smooth_l1", (0.125 + 1.5) / 2), ("l1", 1.25), ("l2", 2.125)]
)
def test_losses_are_in_standard_deviations(loss: str, expected: float) -> None:
    output, target = torch.tensor([[30.0], [60.0]]), torch.tensor([20.0, 20.0])
    assert task(loss=loss).loss(output, target).item() == pytest.approx(expected)


def test_beta_moves_the_corner_of_smooth_l1() -> None:
    output, target = torch.tensor([[40.0]]), torch.tensor([20.0])
    assert task(options={"beta": 2.0}).loss(output, target).item() == pytest.approx(0.25)


@pytest.mark.parametrize("loss", ["smooth_l1", "l1", "l2"])
def test_an_unknown_target_reaches_neither_loss_nor_gradient(loss: str) -> None:
    output = torch.tensor([[30.0], [50.0]], requires_grad=True)
    value = task(loss=loss).loss(output, torch.tensor([20.0, float("nan")]))
    (gradient,) = torch.autograd.grad(value, output)
    assert value.isfinite()
    assert gradient[0] != 0
    assert gradient[1] == 0
    metrics = task().metrics()
    metrics.update(output.detach(), torch.tensor([20.0, float("nan")]))
    assert metrics.compute()["mae"] == 10


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output, target = torch.tensor([[30.0]], requires_grad=True), torch.tensor([float("nan")])
    loss = task().loss(output, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = task().metrics()
    metrics.update(output.detach(), target)
    with pytest.raises(DataError, match="'age'"):
        metrics.compute()


def test_outputs_are_in_the_unit_already() -> None:
    assert torch.equal(task().decode(torch.tensor([[31.2], [5.0]])), torch.tensor([31.2, 5.0]))
    assert task().metric_info["mae"].unit == "years"


def test_caption_has_the_unit() -> None:
    assert task().caption(np.array(31.24)) == "31.2 years"
    assert task().caption(np.array(np.nan)) == "unknown"


def test_a_target_without_spread_is_an_error() -> None:
    with pytest.raises(ConfigError, match="standard deviation 0"):
        task(std=0.0)
