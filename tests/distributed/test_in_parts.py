"""A batch in parts, one after the other: values and gradients of sums over it are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compactmtl.balancing.penalties import weight_gradient_penalty
from compactmtl.distributed.in_parts import Sums, in_parts
from compactmtl.distributed.sums import mean, summed
from compactmtl.tasks.losses import cross_entropy, focal, masked_mean, soft_dice
from compactmtl.train.mimic import relative_error, turned

PARTS = (slice(0, 5), slice(5, 6), slice(6, 8))
LABELS = torch.randint(0, 3, (8, 6, 5), generator=torch.Generator().manual_seed(2))
LABELS[5] = 255  # a part of which nothing is known
OTHER = torch.randn(8, 3, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

Loss = Callable[[Tensor, slice], Tensor]
LOSSES: dict[str, Loss] = {
    "cross-entropy": lambda x, part: cross_entropy(x, LABELS[part], 255, 0.1),
    "dice": lambda x, part: soft_dice(x, LABELS[part], 255),
    "focal": lambda x, part: focal(x, LABELS[part], 255, 2.0),
    "masked mean": lambda x, part: masked_mean(x[:, 0].square(), LABELS[part] != 255),
    "mean": lambda x, part: mean(x.exp()),
    "relative error": lambda x, part: relative_error(x, OTHER[part]),
    "turned": lambda x, part: turned(x, OTHER[part]),
    "of two sums": lambda x, part: (
        torch.log(summed(x.square().sum())[0]) * summed(x.sum(), x.pow(3).sum())[1]
    ),
}


def whole_and_parts(
    function: Callable[[Tensor, Tensor, slice], Tensor], passes: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Value and gradient by the weight of a function of (image, weight, part of the batch): of all, and part by part."""
    image = torch.randn(8, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.tensor([0.8, -1.1, 0.6], dtype=torch.float64).requires_grad_()
    value = function(image, weight, slice(0, 8))
    (gradient,) = torch.autograd.grad(value, weight)
    sums = Sums()
    for _ in range(passes):
        sums.begin()
        for number, part in enumerate(PARTS):
            with sums.part(last=number == len(PARTS) - 1):
                assert in_parts()
                found = function(image[part], weight, part).detach()
        sums.learn()
    total = torch.zeros_like(weight)
    sums.begin()
    for part in PARTS:
        with sums.part():
            again = function(image[part], weight, part)
        torch.testing.assert_close(again, found, rtol=1e-12, atol=1e-12)  # every part knows the value of all
        total += torch.autograd.grad(again, weight)[0]
    assert not in_parts()
    assert sums.apart() == 0
    return (value.detach(), gradient), (found, total)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_in_parts_is_that_of_the_batch(name: str) -> None:
    whole, parts = whole_and_parts(
        lambda image, weight, part: LOSSES[name](image * weight[:, None, None], part), passes=1
    )
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def norm_of(loss: Loss) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """The norm of a loss's gradient, as dummy gradient norms have it, which follows from the loss of the whole batch."""

    def norm(image: Tensor, weight: Tensor, part: slice) -> Tensor:
        dummy = torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            return weight_gradient_penalty(loss(image * (weight * dummy)[:, None, None], part), [dummy])

    return norm


@pytest.mark.parametrize("name", ["cross-entropy", "focal", "masked mean", "mean"])
def test_a_sum_of_what_follows_from_a_sum_takes_one_more_pass(name: str) -> None:
    whole, parts = whole_and_parts(norm_of(LOSSES[name]), passes=2)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_gradients_gradient_of_what_is_no_mean_is_not_that_of_the_batch() -> None:
    """A part does not know how it moves the slopes of the others: why training refuses such losses beside `dgr`."""
    whole, parts = whole_and_parts(norm_of(LOSSES["dice"]), passes=2)
    torch.testing.assert_close(whole[0], parts[0], rtol=1e-12, atol=1e-12)
    assert (whole[1] - parts[1]).norm() > 0.01 * whole[1].norm()


def test_what_changes_between_two_passes_is_told() -> None:
    sums = Sums()
    for factor in (1.0, 1.5):
        sums.begin()
        with sums.part():
            summed(torch.tensor([2.0]) * factor)
        if factor == 1.0:
            sums.learn()
    assert sums.apart() == pytest.approx(0.5)
