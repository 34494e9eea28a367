"""Classification: loss, accuracy over the split, captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
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


UNKNOWN = -100
PARTLY = TargetSpec("class", classes=("a", "b", "c"), ignore_index=UNKNOWN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "options"),
    [("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.1}), ("dice", {})],
)
@given(
    labels=st.lists(st.sampled_from([0, 1, 2, UNKNOWN]), min_size=1, max_size=12), seed=st.integers(0, 1000)
)
def test_unknown_classes_count_as_if_their_images_were_not_there(
    loss: str, options: dict[str, float], labels: list[int], seed: int
) -> None:
    task = build_task("t", TaskConfig(kind="classification", loss=loss, options=options), PARTLY)
    output = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    target = torch.tensor(labels)
    known = target != UNKNOWN
    whole, part = output.clone().requires_grad_(), output[known].clone().requires_grad_()
    task.loss(whole, target).backward()  # type: ignore[no-untyped-call]
    task.loss(part, target[known]).backward()  # type: ignore[no-untyped-call]
    assert whole.grad is not None and part.grad is not None
    # float32 sums in another order
    torch.testing.assert_close(task.loss(whole, target), task.loss(part, target[known]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.grad[known], part.grad, rtol=1e-5, atol=1e-6)
    assert not whole.grad[~known].any()
    metrics, other = task.metrics(), task.metrics()
    metrics.update(output, target)
    other.update(output[known], target[known])
    if known.any():
        assert metrics.compute() == other.compute()
    else:
        assert float(task.loss(whole, target).detach()) == 0
        with pytest.raises(DataError, match="known target"):
            metrics.compute()


def test_an_unknown_class_is_called_so() -> None:
    task = build_task("t", TaskConfig(kind="classification"), PARTLY)
    assert task.caption(np.array(UNKNOWN)) == "unknown"
