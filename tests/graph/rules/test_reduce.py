"""Pools, pads, resizing and reductions over positions: what they leave of a constant, and what of a zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import Between, Branches, all_left, compacted, image, kill, shape

Function = Callable[[Tensor], Tensor]

# A constant map stays a constant map.
UNIFORM: dict[str, Function] = {
    "max_pool, padded": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool, with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2),
    "avg_pool, ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, antialiased": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(4, 4), mode="area"),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "flip": lambda x: x.flip(3),
    "strided slice": lambda x: x[..., ::2],
    "mean": lambda x: x - x.mean((2, 3), keepdim=True) * 0.5,
    "amax": lambda x: x + x.amax((2, 3), keepdim=True),
    "max": lambda x: x + x.max(3, keepdim=True).values,
    "deviation": lambda x: x / (x.std((2, 3), keepdim=True) + 1),
    "sorted positions": lambda x: x.sort(2).values + x.topk(8, 3).values,
    "squeezed and back": lambda x: x.mean(2).unsqueeze(2),
}

# A constant map is one no longer, or another one at another resolution.
ZERO_ONLY: dict[str, Function] = {
    "zeros padded": lambda x: F.pad(x, (1, 1, 0, 2)),
    "cropped by a pad": lambda x: F.pad(x, (-1, -1)),
    "avg_pool, padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "avg_pool, padding not counted": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "sum": lambda x: x.sum((2, 3), keepdim=True),
    "product": lambda x: x.prod(2, keepdim=True),
    "norm": lambda x: x.norm(dim=(2, 3), keepdim=True),
    "cumsum": lambda x: x.cumsum(2),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), (2, 2)),
}

# Not even a zero stays one.
NOTHING: dict[str, Function] = {
    "another value padded": lambda x: F.pad(x, (1, 1), value=0.3),
    "softmax over positions": lambda x: x.softmax(-1),
    "log of a sum": lambda x: x.logsumexp((2, 3), keepdim=True),
    "place of the largest": lambda x: x.argmax(2, keepdim=True).to(x.dtype) + x.amax(2, keepdim=True) * 0,
}


@pytest.mark.slow
def test_constants_and_zeros_pass() -> None:
    assert all_left(UNIFORM) == (dict.fromkeys(UNIFORM, 5), {})


@pytest.mark.slow
def test_zeros_alone_pass() -> None:
    assert all_left(ZERO_ONLY)[0] == dict.fromkeys(ZERO_ONLY, 7)


def test_dead_filters_stay() -> None:
    assert all_left(NOTHING)[0] == dict.fromkeys(NOTHING, 8)


@pytest.mark.slow
def test_unread_channels_go_all_the_same() -> None:
    functions = {**ZERO_ONLY, **NOTHING}
    model = Branches(functions)
    for branch in model.branches:
        kill(branch.last, unread=[0, 3])
    result = compacted(model, image())
    for index, name in enumerate(functions):
        assert shape(result, f"branches.{index}.first.weight")[0] <= 6, name


@pytest.mark.parametrize(("dims", "size"), [(1, (2, 3, 12)), (3, (2, 3, 4, 6, 6))])
def test_pools_and_resizing_of_sequences_and_volumes(dims: int, size: tuple[int, ...]) -> None:
    pool = (F.max_pool1d, F.max_pool3d)[dims // 2]
    mode = ("linear", "trilinear")[dims // 2]

    def function(x: Tensor) -> Tensor:
        return F.interpolate(pool(x, 2), scale_factor=2, mode=mode)

    assert shape(compacted(Between(function, dims=dims), image(*size)), "first.weight")[0] == 5


class SegmentationPair(nn.Module):
    """An encoder and its mirror with unpooling by indices: a dead channel's places are not read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = F.max_pool2d(F.relu(self.down(x)), 2, return_indices=True)
        y: Tensor = self.last(F.max_unpool2d(F.relu(self.inner(x)), places, (2, 2)))
        return y


def test_unpooling_couples_values_and_places() -> None:
    model = SegmentationPair()
    kill(model.down, zero=[0, 1])
    kill(model.inner, zero=[1, 2])
    result = compacted(model, image())
    # 0 is written by `inner`, 2 is read by it: 1 alone is dead on both sides.
    assert shape(result, "down.weight")[0] == shape(result, "inner.weight")[0] == 7
