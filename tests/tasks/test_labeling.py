"""A teacher's outputs as labels: what they say, and where they are sure enough."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.tasks.labeling import sure_labels
from compactmtl.tasks.registry import all_classes, task_kinds
from tests.support.task_kinds import usual_task

LABELING = [kind for kind in task_kinds() if all_classes()[kind].sureness is not None]


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_kinds_whose_output_is_no_label_say_so() -> None:
    assert set(task_kinds()) - set(LABELING) == {"boundaries", "instances"}


@pytest.mark.parametrize("kind", LABELING)
def test_a_label_has_the_targets_format(kind: str) -> None:
    task = usual_task(kind)
    shape = (2, task.channels, 4, 6) if task.dense else (2, task.channels)
    output = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    label, sure = sure_labels(task, output)
    assert sure.ndim == label.ndim
    assert sure.all()
    assert task.known(label).all()
    assert torch.equal(label, task.decode(output))
    assert task.loss(output, label).isfinite()  # it is a target like any other


def test_a_class_counts_from_its_probability_on() -> None:
    task = usual_task("classification")
    shares = torch.tensor([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    label, sure = sure_labels(task, shares.log(), confidence=0.7)
    assert label.tolist() == [0, 1, 2]
    assert sure.tolist() == [True, False, True]


def test_a_pixel_counts_from_its_probability_on() -> None:
    task = usual_task("segmentation")
    shares = torch.tensor([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1]], dtype=torch.float64)
    output = shares.log().T.reshape(1, 3, 1, 2)
    label, sure = sure_labels(task, output, confidence=0.7)
    assert label.tolist() == [[[0, 1]]]
    assert sure.tolist() == [[[True, False]]]


def test_a_tag_counts_where_it_is_probably_there_or_probably_not() -> None:
    task = usual_task("multilabel")
    output = torch.tensor([[logit(0.95), logit(0.6), logit(0.02)]], dtype=torch.float64)
    label, sure = sure_labels(task, output, confidence=0.9)
    assert label.tolist() == [[1.0, 1.0, 0.0]]
    assert sure.tolist() == [[True, False, True]]


@pytest.mark.parametrize("kind", ["regression", "binned_regression"])
def test_a_number_counts_where_the_mirror_agrees_in_its_unit(kind: str) -> None:
    task = usual_task(kind)
    output = torch.randn(3, task.channels, generator=torch.Generator().manual_seed(0))
    label = task.decode(output)
    found, sure = sure_labels(task, output, agreement=2.0, mirrored=label + torch.tensor([0.0, 1.9, -2.1]))
    assert torch.equal(found, label)
    assert sure.tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["depth", "disparity"])
def test_a_positive_map_counts_where_the_mirror_agrees_by_a_share_of_the_mean(kind: str) -> None:
    task = usual_task(kind)
    output = torch.full((1, 1, 1, 4), 2.0)
    other = torch.tensor([2.0, 2.1, 3.0, 0.0]).view(1, 1, 1, 4)  # apart by 0, 4.9 %, 40 % and twice the mean
    _, sure = sure_labels(task, output, agreement=0.05, mirrored=other)
    assert sure.flatten().tolist() == [True, True, False, False]


def test_a_depth_that_is_none_does_not_count() -> None:
    task = usual_task("depth")
    output = torch.tensor([0.0, -1.0, math.inf, math.nan, 1.0]).view(1, 1, 1, 5)
    _, sure = sure_labels(task, output)
    assert sure.flatten().tolist() == [False, False, False, False, True]


def test_a_normal_counts_where_the_mirror_agrees_in_degrees() -> None:
    task = usual_task("normals")
    angles = torch.tensor([0.0, 9.0, 11.0]).deg2rad()
    mirror = torch.stack([angles.sin(), torch.zeros(3), angles.cos()]).view(1, 3, 1, 3)
    output = torch.zeros(1, 3, 1, 3)
    output[:, 2] = 5.0  # of any length
    label, sure = sure_labels(task, output, agreement=10.0, mirrored=mirror)
    assert torch.equal(label[:, 2], torch.ones(1, 1, 3))
    assert sure.shape == (1, 1, 1, 3)
    assert sure.flatten().tolist() == [True, True, False]


@pytest.mark.parametrize("kind", [kind for kind in LABELING if all_classes()[kind].sureness == "probability"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_a_higher_bound_takes_a_part_of_the_same_labels(
    kind: str, seed: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    task = usual_task(kind)
    shape = (2, task.channels, 3, 3) if task.dense else (5, task.channels)
    output = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    label, more = sure_labels(task, output, confidence=low)
    same, fewer = sure_labels(task, output, confidence=high)
    assert torch.equal(label, same)
    assert not (fewer & ~more).any()
    assert ((task.certainty(output) > 0) & (task.certainty(output) <= 1)).all()
