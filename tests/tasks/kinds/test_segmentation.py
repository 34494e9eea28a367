"""Segmentation: its loss and metrics against torchmetrics, brute force and edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.losses import focal, soft_dice

CLASSES = ("floor", "wall", "box", "sphere")
IGNORE = 255


def task(**config: Any) -> Task:
    spec = TargetSpec("mask", classes=CLASSES, ignore_index=IGNORE)
    return build_task("seg", TaskConfig(kind="segmentation", **config), spec)


def logits_of(labels: Tensor) -> Tensor:
    return F.one_hot(labels, len(CLASSES)).movedim(-1, 1).float()


def brute_force(predicted: NDArray[np.int64], target: NDArray[np.int64]) -> dict[str, float]:
    valid = target != IGNORE
    predicted, target = predicted[valid], target[valid]
    ious = []
    for label in range(len(CLASSES)):
        union = ((predicted == label) | (target == label)).sum()
        if union:
            ious.append(((predicted == label) & (target == label)).sum() / union)
    return {"miou": np.mean(ious), "pixel_accuracy": (predicted == target).mean()}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), labels=st.integers(1, 4), batch=st.integers(1, 4))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(
    seed: int, labels: int, batch: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, labels, (6, 5, 7), generator=generator)
    predicted = torch.randint(0, 4, (6, 5, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    target[0, 0, 0] = 0
    metrics = task().metrics()
    for start in range(0, 6, batch):
        metrics.update(logits_of(predicted[start : start + batch]), target[start : start + batch])
    expected = brute_force(predicted.numpy(), target.numpy())
    # counts are exact; the rest is float64 division
    assert metrics.compute() == pytest.approx(expected, abs=1e-12)


def test_miou_equals_torchmetrics_where_every_class_is_present() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (4, 16, 16), generator=generator)
    output = torch.randn(4, 4, 16, 16, generator=generator)
    metrics = task().metrics()
    metrics.update(output, target)
    expected = multiclass_jaccard_index(output, target, num_classes=4, average="macro").item()
    # torchmetrics divides in float32
    assert metrics.compute()["miou"] == pytest.approx(expected, abs=1e-6)


def test_miou_leaves_out_a_class_that_is_in_neither_target_nor_prediction() -> None:
    target = torch.tensor([[[0, 0, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1]]])
    metrics = task().metrics()
    metrics.update(logits_of(predicted), target)
    assert metrics.compute()["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    metrics = task().metrics()
    metrics.update(logits_of(torch.tensor([[[0, 2]]])), torch.tensor([[[0, 0]]]))
    assert metrics.compute()["miou"] == pytest.approx((1 / 2 + 0) / 2)


def test_ignored_pixels_change_neither_loss_nor_metrics() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 4, (2, 6, 6), generator=generator)
    target[:, 3:] = IGNORE
    output = torch.randn(2, 4, 6, 6, generator=generator)
    other = output.clone()
    other[:, :, 3:] = 9 * torch.randn(2, 4, 3, 6, generator=generator)
    found = []
    for x in (output, other):
        metrics = task().metrics()
        metrics.update(x, target)
        found.append((metrics.compute(), task().loss(x, target)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_loss_is_the_mean_over_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(2)
    output = torch.randn(3, 4, 5, 5, generator=generator)
    target = torch.randint(0, 4, (3, 5, 5), generator=generator)
    target[0] = IGNORE
    smoothed = task(options={"label_smoothing": 0.1})
    # another order of summation in float32
    assert torch.allclose(
        task().loss(output, target), F.cross_entropy(output, target, ignore_index=IGNORE), rtol=1e-6
    )
    expected = F.cross_entropy(output, target, ignore_index=IGNORE, label_smoothing=0.1)
    assert torch.allclose(smoothed.loss(output, target), expected, rtol=1e-6)


def test_each_loss_is_the_one_that_it_names() -> None:
    generator = torch.Generator().manual_seed(4)
    output = torch.randn(3, 4, 5, 5, generator=generator)
    target = torch.randint(0, 4, (3, 5, 5), generator=generator)
    target[0, 0] = IGNORE
    entropy, dice = (task(loss=loss).loss(output, target) for loss in ("cross_entropy", "dice"))
    assert torch.equal(dice, soft_dice(output, target, IGNORE))
    assert torch.equal(task(loss="cross_entropy_dice").loss(output, target), entropy + dice)
    hard = task(loss="focal", options={"gamma": 3.0}).loss(output, target)
    assert torch.equal(hard, focal(output, target, IGNORE, 3.0))


@pytest.mark.parametrize(
    ("loss", "options"), [("dice", {"label_smoothing": 0.1}), ("cross_entropy", {"gamma": 2.0})]
)
def test_an_option_that_the_loss_would_pass_over_is_an_error(loss: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"the loss '{loss}' has no {next(iter(options))}"):
        task(loss=loss, options=options)


def test_a_batch_without_a_known_pixel_has_zero_loss_with_zero_gradient() -> None:
    output = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = task().loss(output, torch.full((2, 3, 3), IGNORE))
    (gradient,) = torch.autograd.grad(loss, output)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(output))


def test_a_split_without_a_known_pixel_is_an_error_and_no_nan() -> None:
    metrics = task().metrics()
    metrics.update(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), IGNORE))
    with pytest.raises(DataError, match="'seg'"):
        metrics.compute()


@pytest.mark.parametrize("label", [4, -1, 254])
def test_a_label_that_is_no_class_is_an_error(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} is none of the 4 classes"):
        task().metrics().update(torch.randn(1, 4, 2, 2), torch.full((1, 2, 2), label))


def test_decode_gives_the_greatest_logit() -> None:
    labels = torch.randint(0, 4, (2, 3, 3), generator=torch.Generator().manual_seed(0))
    decoded = task().decode(logits_of(labels))
    assert decoded.dtype == torch.int64
    assert torch.equal(decoded, labels)


def test_half_precision_outputs_give_a_float32_loss() -> None:
    assert task().loss(torch.randn(1, 4, 2, 2).bfloat16(), torch.zeros(1, 2, 2).long()).dtype == torch.float32


def test_one_class_is_too_few() -> None:
    spec = TargetSpec("mask", classes=("all",))
    with pytest.raises(ConfigError, match="names 1 classes"):
        build_task("seg", TaskConfig(kind="segmentation"), spec)
