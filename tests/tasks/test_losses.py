"""Dice and focal losses: against sums by hand in float64, where they are 0 and 1, and what reaches no gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.tasks.losses import binary_focal, focal, soft_dice

IGNORE = 255


def batch(seed: int, classes: int = 4, present: int = 4, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    """Logits (3, classes, 5, 6) and a mask of the first `present` classes, with some pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, present, (3, 5, 6), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    target[0, 0, 0] = 0
    return 2 * torch.randn(3, classes, 5, 6, generator=generator), target


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), present=st.integers(1, 4), ignored=st.floats(0, 0.95))
def test_dice_equals_sums_over_pixels_by_hand(seed: int, present: int, ignored: float) -> None:
    output, target = batch(seed, present=present, ignored=ignored)
    shares, labels = softmax(output.double().numpy()), target.numpy()
    values = []
    for label in range(4):
        overlap = size = 0.0
        for image, row, column in zip(*np.nonzero(labels != IGNORE), strict=True):
            share, there = shares[image, label, row, column], labels[image, row, column] == label
            overlap += share * there
            size += share + there
        if (labels == label).any():
            values.append(2 * overlap / size)
    # float32 sums of 90 shares
    assert soft_dice(output, target, IGNORE).item() == pytest.approx(1 - np.mean(values), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(1, 5))
def test_focal_equals_its_formula(seed: int, gamma: float) -> None:
    output, target = batch(seed)
    shares, labels = softmax(output.double().numpy()), target.numpy()
    image, row, column = np.nonzero(labels != IGNORE)
    true = shares[image, labels[image, row, column], row, column]
    expected = ((1 - true) ** gamma * -np.log(true)).mean()
    assert focal(output, target, IGNORE, gamma).item() == pytest.approx(expected, rel=1e-4)  # float32


def test_focal_of_two_classes_is_the_binary_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logit, target = torch.randn(50, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    pair = torch.stack([torch.zeros(50), logit], 1)
    binary = binary_focal(logit, target.float(), torch.ones(50, dtype=torch.bool), 2.0, None)
    assert focal(pair, target, None, 2.0).item() == pytest.approx(binary.item(), rel=1e-5)  # float32


def test_alpha_weighs_ones_and_zeros() -> None:
    logit, target = torch.zeros(2), torch.tensor([1.0, 0.0])
    valid = torch.ones(2, dtype=torch.bool)
    found = binary_focal(logit, target, valid, 1.0, 0.25).item()
    assert found == pytest.approx((0.25 + 0.75) / 2 * 0.5 * np.log(2))
    one = binary_focal(logit[:1], target[:1], valid[:1], 1.0, 0.25).item()
    assert one == pytest.approx(0.25 * 0.5 * np.log(2))


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_a_whole_dice() -> None:
    target = torch.tensor([[[0, 1, 2, IGNORE]]])
    right = 200 * F.one_hot(torch.tensor([[[0, 1, 2, 3]]]), 4).movedim(-1, 1).float()
    wrong = 200 * F.one_hot(torch.tensor([[[1, 2, 3, 0]]]), 4).movedim(-1, 1).float()
    assert soft_dice(right, target, IGNORE).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice(wrong, target, IGNORE).item() == pytest.approx(1, abs=1e-6)
    assert focal(right, target, IGNORE, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_a_class_absent_from_the_batch_has_no_part_in_the_mean() -> None:
    output, target = batch(1, present=2)
    more = torch.cat([output, torch.full((3, 2, 5, 6), -200.0)], 1)
    assert soft_dice(more, target, IGNORE).item() == pytest.approx(
        soft_dice(output, target, IGNORE).item(), abs=1e-6
    )


def test_gamma_takes_weight_from_easy_pixels() -> None:
    output, target = torch.tensor([[0.0, 4.0], [0.0, -4.0]]), torch.tensor([1, 1])
    easy = [focal(output[:1], target[:1], None, gamma).item() for gamma in (1.0, 2.0)]
    hard = [focal(output[1:], target[1:], None, gamma).item() for gamma in (1.0, 2.0)]
    assert easy[1] / easy[0] < 0.02  # 1 - p is 0.018
    assert hard[1] / hard[0] > 0.98


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice": lambda output, target: soft_dice(output, target, IGNORE),
    "focal": lambda output, target: focal(output, target, IGNORE, 2.0),
    "binary_focal": lambda output, target: binary_focal(
        output[:, 0], (target == 1).float(), target != IGNORE, 2.0, 0.25
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_reach_neither_loss_nor_gradient(name: str) -> None:
    output, target = batch(2)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](output, target), output)
    ignored = (target == IGNORE)[:, None].expand_as(gradient)
    assert gradient[~ignored].any()
    assert not gradient[ignored].any()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_known_is_a_zero_with_a_zero_gradient(name: str) -> None:
    output = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = LOSSES[name](output, torch.full((2, 3, 3), IGNORE))
    (gradient,) = torch.autograd.grad(loss, output)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(output))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_gradients_are_finite_at_certain_and_at_even_predictions(name: str, scale: float) -> None:
    output, target = batch(3)
    output = (scale * output).requires_grad_()
    loss = LOSSES[name](output, target)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, output)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_outputs_give_a_float32_loss(name: str) -> None:
    output, target = batch(4)
    assert LOSSES[name](output.bfloat16(), target).dtype == torch.float32
