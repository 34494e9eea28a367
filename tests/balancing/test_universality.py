"""The loss gap: what the best head has over random ones, and the bound that a convex loss puts on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.balancing.universality import loss_gap

Split = tuple[Tensor, Tensor]


def splits(noise: float) -> tuple[Split, Split]:
    torch.manual_seed(0)

    def split(count: int) -> Split:
        classes = torch.randint(0, 3, (count,))
        return F.one_hot(classes, 5).float() * 2 + noise * torch.randn(count, 5), classes

    return split(600), split(200)


@pytest.mark.slow
def test_the_best_head_beats_random_ones_within_the_bound() -> None:
    train, val = splits(0.5)
    gap = loss_gap(nn.Linear(5, 3), F.cross_entropy, train, val)
    assert gap.optimal < 0.3
    assert gap.arbitrary > 0.8
    assert gap.gap == gap.arbitrary - gap.optimal
    # cross-entropy is convex in a linear head; a tenth more, since the bound holds head by head and these are means
    assert gap.gap <= 1.1 * gap.gradient_norm * gap.distance


@pytest.mark.slow
def test_features_that_tell_more_have_a_wider_gap() -> None:
    clear, blurred = (loss_gap(nn.Linear(5, 3), F.cross_entropy, *splits(noise)) for noise in (0.3, 4.0))
    assert clear.optimal < blurred.optimal
    assert clear.gradient_norm < blurred.gradient_norm  # noise makes for large gradients


@pytest.mark.slow
def test_it_repeats_and_leaves_head_and_generators_alone() -> None:
    head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    before, state = [p.detach().clone() for p in head.parameters()], torch.get_rng_state()
    one, two = (loss_gap(head, F.cross_entropy, *map_splits()) for _ in range(2))
    assert one == two
    assert all(torch.equal(p, was) for p, was in zip(head.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def map_splits() -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    return (x[:40], x[:40].argmax(1) % 3), (x[40:], x[40:].argmax(1) % 3)
