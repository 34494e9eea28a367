"""Multilabel: metrics against torchmetrics and brute force, unknown labels, classes that are nowhere, captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multilabel_accuracy, multilabel_f1_score

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, Task, build_task

CLASSES = ("Smiling", "Young", "Hat")


def task(**config: Any) -> Task:
    return build_task(
        "traits", TaskConfig(kind="multilabel", **config), TargetSpec("multilabel", classes=CLASSES)
    )


def labels(seed: int, unknown: float, images: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 2, (images, 3), generator=generator).float()
    target[torch.rand(target.shape, generator=generator) < unknown] = -1
    return torch.randn(images, 3, generator=generator), target


def measured(one: Task, output: Tensor, target: Tensor, batch: int = 7) -> dict[str, float]:
    metrics = one.metrics()
    for x, y in zip(torch.split(output, batch), torch.split(target, batch), strict=True):
        metrics.update(x, y)
    return metrics.compute()


def brute_force(output: Tensor, target: Tensor) -> dict[str, float]:
    accuracies, scores = [], []
    for scores_of, truth in zip(output.T.tolist(), target.T.tolist(), strict=True):
        pairs = [(score > 0, label == 1) for score, label in zip(scores_of, truth, strict=True) if label >= 0]
        if not pairs:
            continue
        accuracies.append(sum(said == true for said, true in pairs) / len(pairs))
        hits = sum(said and true for said, true in pairs)
        errors = sum(said != true for said, true in pairs)
        if hits + errors:
            scores.append(2 * hits / (2 * hits + errors))
    return {"mean_f1": float(np.mean(scores)) if scores else 1.0, "accuracy": float(np.mean(accuracies))}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), unknown=st.floats(0, 0.98), batch=st.integers(1, 40))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(
    seed: int, unknown: float, batch: int
) -> None:
    output, target = labels(seed, unknown)
    target[0, 0] = 1
    found = measured(task(), output, target, batch)
    assert found == pytest.approx(brute_force(output, target), abs=1e-12)  # counts, then float64


def test_metrics_equal_torchmetrics_where_every_class_is_known_and_present() -> None:
    output, target = labels(0, 0.2)
    found = measured(task(options={"per_class": True}), output, target)
    # torchmetrics takes an integer target and divides in float32
    arguments = (output, target.long(), len(CLASSES))
    accuracy = multilabel_accuracy(*arguments, average="none", ignore_index=-1)
    score = multilabel_f1_score(*arguments, average="macro", ignore_index=-1)
    assert found["mean_f1"] == pytest.approx(score.item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy.mean().item(), abs=1e-6)
    assert [found[f"accuracy_{name}"] for name in CLASSES] == pytest.approx(accuracy.tolist(), abs=1e-6)


def test_a_class_that_is_neither_there_nor_predicted_has_no_f1() -> None:
    target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    output = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    found = measured(task(), output, target)
    assert found["mean_f1"] == pytest.approx((2 / 3 + 0) / 2)  # Young is left out, Hat was missed
    assert found["accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_nothing_there_and_nothing_predicted_is_right() -> None:
    assert measured(task(), -torch.ones(2, 3), torch.zeros(2, 3)) == {"mean_f1": 1.0, "accuracy": 1.0}


def test_unknown_labels_change_neither_loss_nor_metrics() -> None:
    output, target = labels(1, 0.4)
    other = torch.where(target == -1, 50 * torch.ones(()), output)
    assert measured(task(), output, target) == measured(task(), other, target)
    for loss in ("bce", "focal"):
        found = task(loss=loss).loss(output, target)
        assert torch.equal(found, task(loss=loss).loss(other, target))


def test_losses_are_means_over_the_known_labels() -> None:
    output, target = labels(2, 0.4)
    known = target != -1
    expected = F.binary_cross_entropy_with_logits(output[known], target[known])
    assert task().loss(output, target).item() == pytest.approx(expected.item(), rel=1e-6)  # float32
    share = torch.where(target == 1, output.sigmoid(), 1 - output.sigmoid())[known].double()
    weight = torch.where(target == 1, 0.3, 0.7)[known]
    focal = (weight * (1 - share) ** 3 * -share.log()).mean().item()
    found = task(loss="focal", options={"gamma": 3.0, "alpha": 0.3}).loss(output, target).item()
    assert found == pytest.approx(focal, rel=1e-5)  # float32


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output, target = torch.zeros(2, 3, requires_grad=True), -torch.ones(2, 3)
    loss = task().loss(output, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    with pytest.raises(DataError, match="'traits'"):
        measured(task(), output.detach(), target)


def test_a_class_of_which_nothing_is_known() -> None:
    target = torch.tensor([[1.0, -1.0, 0.0]])
    assert measured(task(), torch.ones(1, 3), target)["accuracy"] == 0.5
    with pytest.raises(DataError, match="'Young'"):
        measured(task(options={"per_class": True}), torch.ones(1, 3), target)


@pytest.mark.parametrize("label", [2.0, 0.5, float("nan")])
def test_a_label_that_is_none_is_an_error(label: float) -> None:
    with pytest.raises(DataError, match="is none of 1"):
        task().metrics().update(torch.zeros(1, 3), torch.tensor([[1.0, label, 0.0]]))


def test_the_metrics_are_those_that_are_announced() -> None:
    for one in (task(), task(options={"per_class": True})):
        assert list(measured(one, *labels(3, 0.0))) == list(one.metric_info)
    info = task(options={"per_class": True}).metric_info
    assert [name for name in info if info[name].gain] == ["mean_f1", "accuracy"]


def test_the_share_of_decoded_labels_that_are_right_is_the_accuracy() -> None:
    output, target = labels(4, 0.0)
    decoded = task().decode(output)
    assert decoded.dtype == target.dtype
    assert (decoded == target).float().mean().item() == pytest.approx(
        measured(task(), output, target)["accuracy"]
    )


def test_captions_name_what_is_present() -> None:
    assert task().caption(np.array([1.0, 0.0, 1.0])) == "Smiling, Hat"
    assert task().caption(np.array([0.0, -1.0, 1.0])) == "Hat"
    assert task().caption(np.zeros(3)) == "none"
    assert task().caption(-np.ones(3)) == "unknown"
    assert task().picture(np.ones(3)).shape[-1] == 3


def test_options_of_the_focal_loss_are_refused_without_it() -> None:
    with pytest.raises(ConfigError, match=r"options\.gamma: the loss 'bce' has no gamma") as error:
        task(options={"gamma": 2.0})
    assert "loss: focal" in error.value.hint
    with pytest.raises(ConfigError, match=r"options\.gamma"):
        task(loss="focal", options={"gamma": 0.5})


def test_no_class_is_too_few_and_one_is_enough() -> None:
    with pytest.raises(ConfigError, match="names 0 classes"):
        build_task("traits", TaskConfig(kind="multilabel"), TargetSpec("multilabel"))
    one = build_task("traits", TaskConfig(kind="multilabel"), TargetSpec("multilabel", classes=("Hat",)))
    assert one.channels == 1
