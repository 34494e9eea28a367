"""Reading an output without torch: the same values as in torch, for every kind, and what a bundle may record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ArtifactError
from compactmtl.tasks import TargetSpec, Task
from compactmtl.tasks.build import recorded_task
from compactmtl.tasks.numeric import sigmoid, softmax
from compactmtl.tasks.registry import task_kinds
from tests.support.task_kinds import CLASSES, usual_task

EXACT = ("segmentation", "classification", "multilabel", "instances")  # what they give are whole numbers


def output_of(task: Task, seed: int, batch: int = 2) -> torch.Tensor:
    """Raw outputs far from any tie, as float32 gives them, with both signs."""
    shape = (batch, task.channels, 6, 8) if task.dense else (batch, task.channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("kind", task_kinds())
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_values_are_those_of_the_task(kind: str, seed: int) -> None:
    task = usual_task(kind)
    output = output_of(task, seed)
    expected = task.decode(output).numpy()
    found = task.read(output.numpy())
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if kind in EXACT:
        np.testing.assert_array_equal(found, expected)
    else:  # exp, square root and sums are rounded by two libraries: a few units in the last place
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [("classification", lambda logits: logits.softmax(0)), ("multilabel", lambda logits: logits.sigmoid())],
)
def test_probabilities_are_by_class(kind: str, shares: Callable[[torch.Tensor], torch.Tensor]) -> None:
    task = usual_task(kind)
    output = output_of(task, 1)[0]
    found = task.probabilities(output.numpy())
    assert list(found) == list(CLASSES)
    # a few units in the last place of float32
    assert list(found.values()) == pytest.approx(shares(output).tolist(), abs=1e-6)


def test_a_map_has_no_probabilities() -> None:
    task = usual_task("segmentation")
    assert task.probabilities(output_of(task, 0)[0].numpy()) == {}


def test_logits_that_overflow_have_probabilities_still() -> None:
    extreme = np.array([-2000, 0, 2000], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        assert sigmoid(extreme).tolist() == [0, 0.5, 1]
        assert softmax(extreme).tolist() == [0, 0, 1]


def test_half_precision_is_read_as_float32() -> None:
    task = usual_task("binned_regression")
    output = output_of(task, 5).half()
    found = task.read(output.numpy())
    np.testing.assert_allclose(found, task.decode(output).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "spec", "options", "channels", "message"),
    [
        (
            "segmentation",
            TargetSpec("depth"),
            {},
            3,
            "needs a target of kind 'mask', but 'it' is of kind 'depth'",
        ),
        ("segmentation", TargetSpec("mask", classes=CLASSES), {}, 2, "has 2 channels, expected 3"),
        ("binned_regression", TargetSpec("scalar"), {}, 32, r"tasks\.it\.options\.low` is missing"),
        ("instances", TargetSpec("instances", classes=CLASSES), {}, 3, "has 3 channels, expected 7"),
    ],
)
def test_parts_that_do_not_belong_together(
    kind: str, spec: TargetSpec, options: dict[str, Any], channels: int, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        recorded_task("it", TaskConfig(kind=kind, options=options), spec, channels)


def test_an_output_of_another_width_is_refused() -> None:
    task = usual_task("segmentation")
    with pytest.raises(ArtifactError, match=r"expected \(batch, 3"):
        task.read(np.zeros((1, 4, 2, 2), np.float32))
