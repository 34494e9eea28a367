"""Disparity: masked losses, metrics in the data's unit, unknown and far pixels, the picture's scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.pictures import IGNORED, depth_picture


def task(**config: Any) -> Task:
    return build_task(
        "disparity", TaskConfig(kind="disparity", **config), TargetSpec("disparity", unit="px", std=4.0)
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4), unknown=st.floats(0, 0.9))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(
    seed: int, batch: int, unknown: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = 1 + 60 * torch.rand(4, 1, 5, 6, generator=generator)
    target[torch.rand(target.shape, generator=generator) < unknown] = 0
    target[0, 0, 0, 0] = 5
    output = target + torch.randn(target.shape, generator=generator)
    metrics = task(options={"min_disparity": 4.0}).metrics()
    for x, y in zip(torch.split(output, batch), torch.split(target, batch), strict=True):
        metrics.update(x, y)
    known = target.numpy() >= 4
    true, error = (value.numpy()[known].astype(np.float64) for value in (target, output - target))
    expected = {
        "abs_err": np.abs(error).mean(),
        "rel_err": (np.abs(error) / true).mean(),
        "rmse": np.sqrt((error**2).mean()),
    }
    assert metrics.compute() == pytest.approx(expected, rel=1e-4)  # the difference is taken in float32


@pytest.mark.parametrize("loss", ["l1", "l1_std"])
def test_unknown_and_far_pixels_reach_neither_loss_nor_gradient(loss: str) -> None:
    output = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([[[[9.0, 0.0, float("inf")], [float("nan"), 2.0, 3.0]]]])
    value = task(loss=loss, options={"min_disparity": 2.5}).loss(output, target)
    (gradient,) = torch.autograd.grad(value, output)
    assert value.isfinite()
    assert torch.equal(gradient != 0, torch.tensor([[[[True, False, False], [False, False, True]]]]))


def test_losses_by_hand() -> None:
    output, target = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 8.0]).view(1, 1, 1, 2)
    assert task().loss(output, target).item() == pytest.approx(2.5)
    assert task(loss="l1_std").loss(output, target).item() == pytest.approx(2.5 / 4)


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output = torch.rand(1, 1, 2, 2, requires_grad=True)
    loss = task().loss(output, torch.zeros(1, 1, 2, 2))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = task().metrics()
    metrics.update(output.detach(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(DataError, match="'disparity'"):
        metrics.compute()


def test_errors_carry_the_unit_of_the_data() -> None:
    info = task().metric_info
    assert info["abs_err"].unit == info["rmse"].unit == "px"
    assert info["rel_err"].unit == ""


def test_near_is_bright_as_it_is_of_depth() -> None:
    disparity = np.array([[[1.0, 2.0, 4.0, 0.0]]])
    picture = task().picture(disparity)
    brightness = picture.astype(int).sum(-1)[0]
    assert brightness[0] < brightness[1] < brightness[2]
    assert tuple(picture[0, 3]) == IGNORED
    # the ends of the scale are those of depth: nearest 1 / 4, farthest 1
    depth = depth_picture(np.array([[[1.0, 0.25]]]))
    assert np.array_equal(picture[0, [0, 2]], depth[0])


def test_the_target_fixes_the_scale_of_a_prediction() -> None:
    target = np.array([[[1.0, 3.0]]])
    alone, beside = (
        task().picture(np.array([[[2.0, 2.0]]])),
        task().picture(np.array([[[2.0, 2.0]]]), target),
    )
    assert not np.array_equal(alone, beside)
