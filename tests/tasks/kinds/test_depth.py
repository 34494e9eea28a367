"""Depth: masked losses, metrics in the data's unit, unknown pixels."""

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


def task(unit: str = "m", **config: Any) -> Task:
    return build_task("depth", TaskConfig(kind="depth", **config), TargetSpec("depth", unit=unit))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 5), unknown=st.floats(0, 0.9))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(
    seed: int, batch: int, unknown: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = 0.5 + 9 * torch.rand(5, 1, 6, 7, generator=generator)
    target[torch.rand(target.shape, generator=generator) < unknown] = 0
    target[0, 0, 0, 0] = 1
    output = target + torch.randn(target.shape, generator=generator)
    metrics = task().metrics()
    for start in range(0, 5, batch):
        metrics.update(output[start : start + batch], target[start : start + batch])
    known = target.numpy() > 0
    true, error = (
        target.numpy()[known].astype(np.float64),
        (output - target).numpy()[known].astype(np.float64),
    )
    expected = {
        "abs_err": np.abs(error).mean(),
        "rel_err": (np.abs(error) / true).mean(),
        "rmse": np.sqrt((error**2).mean()),
    }
    # the difference of brute force is taken in float32
    assert metrics.compute() == pytest.approx(expected, rel=1e-5)


def test_small_errors_are_not_lost_after_a_large_one() -> None:
    metrics = task().metrics()
    one = torch.ones(1, 1, 1, 1)
    metrics.update(one * 2**27, one)
    for _ in range(200):  # in float32, 2**27 + 1 is 2**27
        metrics.update(2 * one, one)
    assert metrics.compute()["abs_err"] == (2**27 - 1 + 200) / 201


@pytest.mark.parametrize("loss", ["l1", "log_l1"])
def test_unknown_pixels_reach_neither_loss_nor_gradient(loss: str) -> None:
    output = torch.rand(1, 1, 2, 3, requires_grad=True)
    target = torch.tensor([[[[1.0, 0.0, float("inf")], [float("nan"), 2.0, 3.0]]]])
    value = task(loss=loss, options={"max_depth": 2.5}).loss(output, target)
    (gradient,) = torch.autograd.grad(value, output)
    assert value.isfinite()
    assert torch.equal(gradient != 0, torch.tensor([[[[True, False, False], [False, True, False]]]]))


def test_losses_by_hand() -> None:
    output, target = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 8.0]).view(1, 1, 1, 2)
    assert task().loss(output, target).item() == pytest.approx(2.5)
    assert task(loss="log_l1").loss(output, target).item() == pytest.approx(np.log(2))


def test_log_loss_of_an_underflown_output_is_finite() -> None:
    loss = task(loss="log_l1").loss(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert loss.item() == pytest.approx(np.log(1e6))


def test_a_batch_without_a_known_pixel_has_zero_loss_with_a_graph() -> None:
    output = torch.rand(1, 1, 2, 2, requires_grad=True)
    loss = task().loss(output, torch.zeros(1, 1, 2, 2))
    (gradient,) = torch.autograd.grad(loss, output)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(output))


def test_a_split_without_a_known_pixel_is_an_error_and_no_nan() -> None:
    metrics = task().metrics()
    metrics.update(torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(DataError, match="'depth'"):
        metrics.compute()


def test_errors_carry_the_unit_of_the_data() -> None:
    info = task(unit="mm").metric_info
    assert info["abs_err"].unit == info["rmse"].unit == "mm"
    assert info["rel_err"].unit == ""


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="log_11") as error:
        task(loss="log_11")
    assert "log_l1" in error.value.hint


def test_unknown_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match="max_dept"):
        task(options={"max_dept": 3})
