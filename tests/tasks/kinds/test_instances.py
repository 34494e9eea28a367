"""The instances task: cell targets by analytic cases, the loss's optimum and edges, AP against pycocotools' own use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.tasks.instance_decoding_numpy import OFFSET_UNIT
from compactmtl.tasks.instance_scoring import InstanceReference, resize_mask, to_rle
from compactmtl.tasks.instance_targets import CellTargets, cell_targets
from compactmtl.tasks.kinds.instances import InstancesTask, center_loss
from compactmtl.tasks.summaries import list_instances

CLASSES = ("cat", "dog", "cow")
SMALL = 40.0
OPTIONS = {"threshold": 0.3, "window": 5, "limit": 7}  # for the tests of all kinds


def task(**config: Any) -> InstancesTask:
    built = build_task(
        "things", TaskConfig(kind="instances", **config), TargetSpec("instances", classes=CLASSES)
    )
    assert isinstance(built, InstancesTask)
    return built


def scene() -> Tensor:
    """Two images of 32 x 40 pixels: a large cow and a small dog; one cat and a crowd of dogs."""
    target = torch.zeros(2, 2, 32, 40, dtype=torch.int64)
    target[0, 0, 4:20, 8:32], target[0, 1, 4:20, 8:32] = 1, 2
    target[0, 0, 24:30, 32:38], target[0, 1, 24:30, 32:38] = 2, 1
    target[1, 0, 0:8, 0:8], target[1, 1, 0:8, 0:8] = 7, 0
    target[1, 0, 16:32, 20:40], target[1, 1, 16:32, 20:40] = -1, 1
    return target


def perfect(cells: CellTargets) -> Tensor:
    """An output that says what the targets say."""
    center = torch.where(cells.center == 1, 6.0, -12.0)
    return torch.cat([(cells.classes + 1e-4).log(), center[:, None], cells.offset], 1)


def test_cells_hold_shares_centers_and_ways_to_the_center() -> None:
    cells = cell_targets(scene(), 3, SMALL)
    assert cells.classes.shape == (2, 4, 8, 10) and cells.offset.shape == (2, 2, 8, 10)
    assert cells.classes[0, :, 1, 2].tolist() == [0, 0, 0, 1]  # all cow
    assert cells.classes[0, :, 7, 9].tolist() == [0.75, 0, 0.25, 0]  # rows 28, 29 and columns 36, 37 are dog
    # the cow's center is (12, 20), the middle of the edge between cells: it lies in cell (3, 5)
    assert (cells.center[0] == 1).nonzero().tolist() == [[3, 5], [6, 8]]
    # cell (1, 2) has its middle at (6, 10)
    expected = torch.tensor([12 - 6, 20 - 10]) / OFFSET_UNIT
    torch.testing.assert_close(cells.offset[0, :, 1, 2], expected)
    assert int(cells.owned[0].sum()) == 4 * 6 + 4 and not cells.offset[0, :, 0, 0].any()
    assert cells.small[0, 7, 9] and not cells.small[0, 1, 2]  # 36 pixels, 384 pixels


def test_a_crowd_is_unknown_and_owns_nothing() -> None:
    cells = cell_targets(scene(), 3, SMALL)
    assert not cells.known[1, 4:, 5:].any() and (cells.known[1, :4] == 1).all()
    assert not cells.owned[1, 4:, 5:].any()
    assert (cells.center[1] == 1).nonzero().tolist() == [[1, 1]]


def test_a_size_that_is_no_multiple_of_the_stride_is_filled_up_with_unknown() -> None:
    cells = cell_targets(scene()[:, :, :30, :38], 3, SMALL)
    assert cells.known.shape == (2, 8, 10)
    assert cells.known[0, 7, 9] == 0.25 and cells.known[0, 7, 0] == 0.5


def test_the_same_number_in_two_images_is_two_instances() -> None:
    target = torch.zeros(2, 2, 8, 16, dtype=torch.int64)
    target[0, 0, :, :4] = 1
    target[1, 0, :, 12:] = 1
    cells = cell_targets(target, 3, SMALL)
    assert [(cells.center[i] == 1).nonzero().tolist() for i in (0, 1)] == [[[1, 0]], [[1, 3]]]


def test_the_loss_is_least_where_the_output_says_what_is_there() -> None:
    cells = cell_targets(scene(), 3, 1 / 64 * 32 * 40)
    best = perfect(cells)
    least = float(task().loss(best, scene()))
    generator = torch.Generator().manual_seed(0)
    for channel in range(best.shape[1]):
        worse = best.clone()
        worse[:, channel] += torch.randn(worse[:, channel].shape, generator=generator)
        assert float(task().loss(worse, scene())) > least


def test_the_parts_of_the_loss_have_their_weights() -> None:
    output = torch.randn(2, 7, 8, 10, generator=torch.Generator().manual_seed(0))
    parts = ("classes", "centers", "offsets")
    alone = [
        float(task(options={part: 0.0 for part in parts if part != kept}).loss(output, scene()))
        for kept in parts
    ]
    assert all(value > 0 for value in alone)
    assert float(task().loss(output, scene())) == pytest.approx(sum(alone), rel=1e-5)
    twice = task(options={"classes": 0.0, "centers": 0.0, "offsets": 2.0})
    assert float(twice.loss(output, scene())) == pytest.approx(2 * alone[2], rel=1e-5)


def test_balance_weighs_classes_by_a_power_of_what_they_cover() -> None:
    target = torch.zeros(1, 2, 16, 16, dtype=torch.int64)
    target[:, 0, :, 8:], target[:, 1, :, 8:] = 1, 2
    target[:, 0, :4, :4], target[:, 1, :4, :4] = 2, 0
    output = torch.randn(1, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 3, 3], [0, 0, 3, 3], [0, 0, 3, 3], [0, 0, 3, 3]])
    entropy = -output[0, :4].log_softmax(0).gather(0, labels[None])[0]
    count = torch.tensor([7.0, 1.0, 0.0, 8.0])[labels]
    small = torch.where(labels == 1, 3.0, 1.0)  # 16 pixels are a small instance, 128 are not
    for power in (0.0, 0.5, 1.0):
        alone = {"centers": 0.0, "offsets": 0.0, "balance": power, "small_area": 0.1}
        weight = small * count**-power
        expected = float((entropy * weight).sum() / weight.sum())
        assert float(task(options=alone).loss(output, target)) == pytest.approx(expected, rel=1e-5)


def test_the_centers_loss_is_the_papers_formula() -> None:
    logits = torch.tensor([[[2.0, -1.0, 0.5]]])
    target = torch.tensor([[[1.0, 0.6, 0.0]]])
    chance = [1 / (1 + math.exp(-value)) for value in (2.0, -1.0, 0.5)]
    expected = -((1 - chance[0]) ** 2) * math.log(chance[0])
    expected -= 0.4**4 * chance[1] ** 2 * math.log(1 - chance[1])
    expected -= chance[2] ** 2 * math.log(1 - chance[2])
    assert float(center_loss(logits, target, torch.ones(1, 1, 3))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fill", [0, -1], ids=["nothing there", "all unknown"])
def test_a_batch_without_instances_has_a_finite_loss_and_gradients(fill: int) -> None:
    output = torch.randn(1, 7, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.zeros(1, 2, 16, 16, dtype=torch.int64)
    target[:, 0] = fill
    loss = task(options={"balance": 0.5}).loss(output, target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None and output.grad.isfinite().all()
    assert (float(loss.detach()) == 0) == (fill == -1)


def test_crowds_leave_no_gradient_on_classes_and_centers() -> None:
    output = torch.randn(2, 7, 8, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    task().loss(output, scene()).backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None
    assert not output.grad[1, :, 4:, 5:].any() and output.grad[1, :, :4].any()


def test_decoding_the_targets_gives_the_scene_back() -> None:
    target = scene()
    decoded = task().decode(perfect(cell_targets(target, 3, SMALL)))
    assert decoded.shape == target.shape
    for number, (one, other) in enumerate(zip(decoded, target, strict=True)):
        things = other[0] > 0
        assert (one[1][things] == other[1][things]).float().mean() > 0.85  # edges are soft
        assert len(one[0].unique()) == len(other[0].clamp(min=0).unique()), number


def test_ap_at_the_targets_size_is_full_for_the_targets_own_output() -> None:
    metrics = task().metrics()
    target = scene()[:, :, :32]
    target[0, 0, 24:30], target[0, 1, 24:30] = 0, 0  # the small dog has soft edges
    metrics.update(perfect(cell_targets(target, 3, SMALL)), target)
    found = metrics.compute()
    assert found["ap50"] == pytest.approx(1) and found["ap75"] == pytest.approx(1)
    assert set(found) == set(task().metric_info)


def test_a_wrong_class_and_a_missed_instance_cost_what_they_should() -> None:
    target = scene()
    target[1, 0].clamp_(min=0)
    output = perfect(cell_targets(target, 3, SMALL))
    output[1, [1, 2]] = output[
        1, [2, 1]
    ].clone()  # the cat is taken for a dog, which ranks below the real one
    metrics = task().metrics()
    metrics.update(output, target)
    # cow 1, cat 0, dog: its one instance is found (a false one of no less score may come before it)
    assert metrics.compute()["ap50"] in (pytest.approx(2 / 3), pytest.approx(1 / 2))


def test_references_are_scored_at_their_own_size() -> None:
    target = scene()[:1]
    output = perfect(cell_targets(target, 3, SMALL))
    cow = [[16.0, 8.0, 64.0, 8.0, 64.0, 40.0, 16.0, 40.0]]  # twice the target's size
    right = {"label": 2, "segmentation": cow, "area": 48 * 32, "iscrowd": 0}
    away = right | {"segmentation": [[v + 20 * (i % 2) for i, v in enumerate(cow[0])]]}
    for annotation, expected in ((right, 1.0), (away, 0.0)):
        metrics = task().metrics()
        metrics.update(output, target, [InstanceReference(64, 80, (annotation,))])
        assert metrics.compute()["ap50"] == pytest.approx(expected, abs=1e-9)


def test_a_detection_on_a_crowd_is_neither_right_nor_wrong() -> None:
    target = scene()[1:]
    clean = target.clone()
    clean[:, :, 16:, 20:] = 0
    clean[:, 0, 16:, 20:] = 3
    clean[:, 1, 16:, 20:] = 1  # the output sees a dog where the crowd of dogs is
    output = perfect(cell_targets(clean, 3, SMALL))
    metrics = task().metrics()
    metrics.update(output, target)
    assert metrics.compute()["ap50"] == pytest.approx(1)


def test_nothing_found_scores_zero_and_nothing_to_find_raises() -> None:
    output = torch.zeros(2, 7, 8, 10)
    output[:, 4] = -9.0
    metrics = task().metrics()
    metrics.update(output, scene())
    assert metrics.compute() == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    empty = task().metrics()
    empty.update(output, torch.zeros_like(scene()))
    with pytest.raises(DataError, match="things"):
        empty.compute()


def test_masks_are_resized_by_area_not_by_chance() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    assert int(resize_mask(mask, (16, 16)).sum()) == 64
    assert torch.equal(resize_mask(mask, (8, 8)), mask.to(torch.uint8))


@pytest.mark.parametrize(
    "segmentation", [[], [[1.0, 2.0]], {"size": [9, 9], "counts": [81]}, {"counts": [4]}, 5]
)
def test_what_is_no_segmentation_is_a_data_error(segmentation: Any) -> None:
    with pytest.raises(DataError, match="neither polygons nor run lengths"):
        to_rle(segmentation, (4, 4))


def test_the_picture_shows_classes_edges_and_crowds_and_the_caption_counts() -> None:
    value = scene().numpy()
    first, second = task().picture(value[0]), task().picture(value[1])
    assert first.shape == (32, 40, 3) and first.dtype == np.uint8
    assert (first[10, 8] == 255).all() and len(np.unique(first.reshape(-1, 3), axis=0)) == 4
    assert second[20, 30].max() < 30
    assert task().caption(value[0]) == "1 cow, 1 dog"
    assert task().caption(value[1]) == "1 cat"
    assert task().caption(np.zeros((2, 4, 4), np.int64)) == "nothing"


@pytest.mark.parametrize(
    ("config", "said"),
    [({"options": {"window": 2}}, "window"), ({"loss": "l1"}, "loss"), ({"options": {"tresh": 1}}, "tresh")],
)
def test_wrong_configurations_are_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task(**config)


def test_another_kind_of_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mask'"):
        build_task("things", TaskConfig(kind="instances"), TargetSpec("mask", classes=CLASSES))


def test_instances_are_listed_with_class_box_and_size() -> None:
    assert list_instances(scene()[0].numpy(), CLASSES) == [
        {"class": "cow", "box": [8, 4, 32, 20], "pixels": 24 * 16},
        {"class": "dog", "box": [32, 24, 38, 30], "pixels": 36},
    ]
