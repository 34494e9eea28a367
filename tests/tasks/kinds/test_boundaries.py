"""Boundaries: edges of masks against brute force, the weighted loss, the F-measure at the best threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.tasks.kinds.boundaries import BoundariesTask, boundaries
from compactmtl.tasks.pictures import IGNORED, MARKED

IGNORE = 255


def task(**options: Any) -> BoundariesTask:
    spec = TargetSpec("mask", classes=("floor", "wall", "box"), ignore_index=IGNORE)
    built = build_task("edges", TaskConfig(kind="boundaries", target="mask", options=options), spec)
    assert isinstance(built, BoundariesTask)
    return built


def blocks(seed: int, ignored: float = 0.1, count: int = 3) -> Tensor:
    """Masks (count, 9, 11) of a few rectangles, with some pixels ignored."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, 9, 11), np.int64)
    for mask in masks:
        for label in (1, 2):
            top, left = generator.integers(0, 7, 2)
            mask[top : top + generator.integers(2, 6), left : left + generator.integers(2, 6)] = label
    masks[generator.random(masks.shape) < ignored] = IGNORE
    return torch.from_numpy(masks)


def near(mask: NDArray[Any], row: int, column: int, radius: int) -> NDArray[Any]:
    """The pixels within `radius` of one, itself included."""
    rows = slice(max(row - radius, 0), row + radius + 1)
    return mask[rows, max(column - radius, 0) : column + radius + 1].ravel()


def edges_by_hand(mask: NDArray[np.int64], radius: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    edge, known = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for row, column in np.ndindex(*mask.shape):
        around = near(mask, row, column, radius)
        if mask[row, column] != IGNORE:
            edge[row, column] = ((around != IGNORE) & (around != mask[row, column])).any()
            known[row, column] = edge[row, column] or not (around == IGNORE).any()
    return edge, known


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.integers(1, 3), ignored=st.floats(0, 0.5))
def test_edges_equal_brute_force(seed: int, radius: int, ignored: float) -> None:
    masks = blocks(seed, ignored)
    edge, known = boundaries(masks, IGNORE, radius)
    for index, mask in enumerate(masks.numpy()):
        expected = edges_by_hand(mask, radius)
        np.testing.assert_array_equal(edge[index].numpy(), expected[0])
        np.testing.assert_array_equal(known[index].numpy(), expected[1])


def test_a_vertical_edge_is_as_wide_as_the_radius_on_both_sides() -> None:
    mask = torch.zeros(1, 4, 10, dtype=torch.int64)
    mask[..., 5:] = 2
    for radius in (1, 2, 3):
        edge, known = boundaries(mask, None, radius)
        assert edge[0].all(0).nonzero().flatten().tolist() == list(range(5 - radius, 5 + radius))
        assert int(edge.sum()) == 4 * 2 * radius
        assert known.all()


def test_the_picture_has_no_boundary_at_its_border_and_none_beside_what_is_ignored() -> None:
    mask = torch.ones(1, 5, 5, dtype=torch.int64)
    mask[0, 2, 2] = IGNORE
    edge, known = boundaries(mask, IGNORE, 1)
    assert not edge.any()
    assert int(known.sum()) == 25 - 9  # the ignored pixel and the eight that touch it


def measures_by_hand(
    probability: NDArray[np.float32], masks: NDArray[np.int64], radius: int, tolerance: int
) -> dict[str, float]:
    def spread(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = maximum_filter(where, 2 * tolerance + 1, mode="constant")
        return found

    sides = [edges_by_hand(mask, radius) for mask in masks]
    best = (0.0, 0.0, 0.0)
    for level in torch.arange(1, 100, dtype=torch.float32).div(100).numpy():
        predicted = right = true = hit = 0
        for share, (edge, known) in zip(probability, sides, strict=True):
            shown = known & (share >= level)
            predicted += shown.sum()
            right += (shown & spread(edge)).sum()
            true += edge.sum()
            hit += (edge & spread(shown)).sum()
        precision, recall = right / max(predicted, 1), hit / true
        both = precision + recall
        if both and 2 * precision * recall / both > best[0]:
            best = (2 * precision * recall / both, precision, recall)
    return dict(zip(("ods_f", "precision", "recall"), best, strict=True))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 3), tolerance=st.integers(0, 3))
def test_metrics_over_batches_equal_brute_force_over_the_whole_split(
    seed: int, batch: int, tolerance: int
) -> None:
    masks = blocks(seed, 0.05, count=2)
    masks[0, 0, :4] = torch.tensor([0, 0, 1, 1])  # at least one boundary
    output = 2 * torch.randn(2, 1, 9, 11, generator=torch.Generator().manual_seed(seed))
    one = task(tolerance=tolerance)
    metrics = one.metrics()
    for x, y in zip(torch.split(output, batch), torch.split(masks, batch), strict=True):
        metrics.update(x, y)
    expected = measures_by_hand(output.sigmoid()[:, 0].numpy(), masks.numpy(), 1, tolerance)
    assert metrics.compute() == pytest.approx(expected, abs=1e-12)  # counts, then float64


def logits_of(edge: Tensor) -> Tensor:
    return torch.where(edge, 4.0, -4.0)[:, None]


def test_the_true_edges_score_one_and_so_do_edges_moved_within_the_tolerance() -> None:
    mask = torch.zeros(1, 8, 16, dtype=torch.int64)
    mask[..., 8:] = 1
    edge, _ = boundaries(mask, None, 1)
    for shift, tolerance, score in ((0, 0, 1.0), (2, 2, 1.0), (2, 1, 2 / 4), (2, 0, 0.0)):
        metrics = task(tolerance=tolerance).metrics()
        metrics.update(2 * logits_of(edge.roll(shift, 2)), mask)  # below 0.01 or above 0.99
        found = metrics.compute()
        # two columns, moved by two: with a tolerance of 1 one of each two is matched
        expected = {"ods_f": score, "precision": score, "recall": score}
        assert found == pytest.approx(expected), (shift, tolerance)


def test_the_threshold_is_that_of_the_whole_split() -> None:
    mask = torch.zeros(1, 6, 12, dtype=torch.int64)
    mask[..., 6:] = 1
    edge, _ = boundaries(mask, None, 1)
    weak, strong = logits_of(edge) - 3, logits_of(edge) + 3  # an edge at 0.73 over 0.001; at 0.999 over 0.27
    metrics = task().metrics()
    metrics.update(torch.cat([weak, strong]), torch.cat([mask, mask]))
    assert metrics.compute()["ods_f"] == 1.0
    wrong = task().metrics()
    wrong.update(logits_of(~edge), mask)
    assert wrong.compute()["ods_f"] < 0.7


def test_nothing_predicted_scores_zero() -> None:
    metrics = task().metrics()
    metrics.update(torch.full((1, 1, 2, 4), -9.0), torch.tensor([[[0, 0, 1, 1]] * 2]))
    assert metrics.compute() == {"ods_f": 0.0, "precision": 0.0, "recall": 0.0}


def test_the_balanced_loss_weighs_both_sides_alike() -> None:
    masks = blocks(3)
    output = torch.randn(3, 1, 9, 11, generator=torch.Generator().manual_seed(0))
    edge, known = task().edges(masks)
    total = 0.0
    for logit, on, seen in zip(output[:, 0].double(), edge, known, strict=True):
        others = (seen & ~on).sum() / seen.sum()
        total -= float(others * F.logsigmoid(logit[on]).sum())
        total -= float((1 - others) * F.logsigmoid(-logit[seen & ~on]).sum())
    assert task().loss(output, masks).item() == pytest.approx(total / int(known.sum()), rel=1e-5)  # float32


def test_a_fixed_weight_is_the_share_of_boundaries() -> None:
    mask = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    output = torch.tensor([[[[1.0, -1.0, 2.0, 0.5, 3.0, -2.0]]]])
    edge = torch.tensor([0.0, 0, 1, 1, 0, 0])
    bce = F.binary_cross_entropy_with_logits(output.flatten(), edge, reduction="none")
    expected = (torch.where(edge == 1, 0.95, 0.05) * bce).mean().item()
    assert task(edge_weight=0.95).loss(output, mask).item() == pytest.approx(expected, rel=1e-6)
    half = task(edge_weight=0.5).loss(output, mask).item()
    assert half == pytest.approx(bce.mean().item() / 2, rel=1e-6)


def test_ignored_pixels_reach_neither_loss_nor_gradient() -> None:
    masks = blocks(5, 0.2)
    output = torch.randn(3, 1, 9, 11, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(task().loss(output, masks), output)
    _, known = task().edges(masks)
    assert not gradient[:, 0][~known].any()
    assert gradient[:, 0][known].any()


def test_nothing_known_is_a_zero_loss_in_a_batch_and_an_error_in_a_split() -> None:
    output, target = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.full((1, 2, 2), IGNORE)
    loss = task().loss(output, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, output)[0].any()
    metrics = task().metrics()
    metrics.update(output.detach(), target)
    with pytest.raises(DataError, match="'edges'"):
        metrics.compute()


def test_a_split_of_one_class_has_no_boundary_to_measure() -> None:
    metrics = task().metrics()
    metrics.update(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.int64))
    with pytest.raises(DataError, match="no boundary between two classes"):
        metrics.compute()


def test_pictures_of_target_and_prediction_agree() -> None:
    mask = np.array([[0, 0, 0, 1, 1, IGNORE]])
    target = task().picture(mask)
    assert [tuple(pixel) for pixel in target[0].tolist()] == [
        (255, 255, 255), (255, 255, 255), MARKED, MARKED, IGNORED, IGNORED
    ]  # fmt: skip
    decoded = task().decode(torch.tensor([[[[-99.0, -99.0, 99.0, 99.0, -99.0, -99.0]]]]))[0].numpy()
    assert np.array_equal(task().picture(decoded)[0, :4], target[0, :4])


def test_it_needs_a_mask() -> None:
    with pytest.raises(ConfigError, match="needs a target of kind 'mask'"):
        build_task("edges", TaskConfig(kind="boundaries"), TargetSpec("depth"))
