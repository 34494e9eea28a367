"""Classification: loss, accuracy over the split, captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, build_task

SPEC = TargetSpec("class", classes=("White", "Black", "Asian", "Indian", "Others"))
TASK = build_task("ethnicity", TaskConfig(kind="classification"), SPEC)


def test_accuracy_over_unequal_batches_is_not_the_mean_of_batch_means() -> None:
    metrics = TASK.metrics()
    target = torch.tensor([0, 1, 2, 3, 4])
    right, wrong = F.one_hot(target, 5).float(), F.one_hot((target + 1) % 5, 5).float()
    metrics.update(right[:4], target[:4])
    metrics.update(wrong[4:], target[4:])
    assert metrics.compute() == {"accuracy": 0.8}


def test_accuracy_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = (
        torch.randn(500, 5, generator=generator),
        torch.randint(0, 5, (500,), generator=generator),
    )
    metrics = TASK.metrics()
    for x, y in zip(output.chunk(8), target.chunk(8), strict=True):
        metrics.update(x, y)
    expected = multiclass_accuracy(output, target, num_classes=5, average="micro").item()
    assert metrics.compute()["accuracy"] == pytest.approx(expected, abs=1e-7)  # torchmetrics' is float32


def test_loss_is_cross_entropy() -> None:
    output, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    # another order of summation in float32
    assert TASK.loss(output, target).item() == pytest.approx(F.cross_entropy(output, target).item(), rel=1e-6)


def test_an_empty_batch_has_zero_loss_and_adds_nothing() -> None:
    output = torch.zeros(0, 5, requires_grad=True)
    loss = TASK.loss(output, torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = TASK.metrics()
    metrics.update(output.detach(), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError):
        metrics.compute()


def test_caption_is_the_name_of_the_class() -> None:
    assert TASK.caption(np.array(2)) == "Asian"
    assert TASK.caption(np.array(9)) == "unknown"


def test_picture_shows_the_name() -> None:
    picture = TASK.picture(np.array(2))
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert not np.array_equal(picture, TASK.picture(np.array(3)))


def test_dice_of_a_batch_by_hand() -> None:
    task = build_task("ethnicity", TaskConfig(kind="classification", loss="dice"), SPEC)
    output = torch.tensor([[3.0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0], [0, 2.0, 0, 0, 0]])
    shares = output.softmax(1)
    dice = [2 * shares[0, 0] / (shares[:, 0].sum() + 1), 2 * shares[1:, 1].sum() / (shares[:, 1].sum() + 2)]
    expected = 1 - sum(float(d) for d in dice) / 2  # over the classes that the batch has
    assert task.loss(output, torch.tensor([0, 1, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_an_option_that_the_loss_does_not_use() -> None:
    config = TaskConfig(kind="classification", loss="dice", options={"label_smoothing": 0.1})
    with pytest.raises(ConfigError, match="label_smoothing"):
        build_task("ethnicity", config, SPEC)
