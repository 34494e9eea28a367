"""Unpooling: the exportable form is the indices' own function, ties, odd sizes and gradients included."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compactmtl.models.unpool import IndexPool, IndexUnpool, MaskPool, MaskUnpool


def both(x: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The maxima of `x` and `values` put back at their places, in both forms."""
    size = (x.shape[-2], x.shape[-1])
    found = []
    for pool, unpool in ((IndexPool(), IndexUnpool()), (MaskPool(), MaskUnpool())):
        pooled, places = pool(x)
        found.append((pooled, unpool(values, places, size)))
    return found


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    levels=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_masks_and_indices_are_one_function(height: int, width: int, levels: int, seed: int) -> None:
    """Few levels make ties the rule; the first of equals wins, as in torch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, levels, (2, 3, height, width), generator=generator).float()
    values = torch.randn(2, 3, height // 2, width // 2, generator=generator)
    (by_index, one), (by_mask, other) = both(x, values)
    assert torch.equal(by_index, by_mask)
    assert torch.equal(one, other)


def test_every_window_gets_its_value_once() -> None:
    values = 1 + torch.rand(1, 2, 3, 4)
    for _, unpooled in both(torch.zeros(1, 2, 7, 8), values):
        assert torch.equal(unpooled[..., :6:2, ::2], values)  # of equals the first corner
        assert int((unpooled != 0).sum()) == values.numel()
        assert not unpooled[..., 6, :].any()  # an odd last row is in no window


def test_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    x, values = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 3, 4)
    weight = torch.randn(2, 3, 6, 8)
    found = []
    for pool, unpool in ((IndexPool(), IndexUnpool()), (MaskPool(), MaskUnpool())):
        leaf, put = x.clone().requires_grad_(), values.clone().requires_grad_()
        pooled, places = pool(leaf)
        loss = (unpool(put * pooled, places, (6, 8)) * weight).sum()
        found.append(torch.autograd.grad(loss, [leaf, put]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
