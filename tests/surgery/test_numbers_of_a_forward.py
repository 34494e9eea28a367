"""Numbers that a forward computes, checks or holds in lists: what becomes of them when widths change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.masking import compacted, kill

POSITIONS = 5


class Attention(nn.Module):
    """Self-attention of 2 heads whose scale is computed anew at every call."""

    def __init__(self, spelling: str, heads: int = 2, width: int = 8, stream: int = 12) -> None:
        super().__init__()
        self.spelling, self.heads, self.head_size = spelling, heads, width
        self.all_head_size = heads * width
        self.query, self.key, self.value = (nn.Linear(stream, heads * width) for _ in range(3))
        self.out = nn.Linear(heads * width, stream)
        self.scale = width**-0.5 if spelling == "held" else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.heads, self.head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = self.mixed(q, k, v)
        y: Tensor = x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], self.all_head_size))
        return y

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        width = self.head_size
        match self.spelling:
            case "fused":
                return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(width))
            case "scores divided":
                scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(width)
            case "scores times":
                scores = (q @ k.mT) * width**-0.5
            case "queries times":
                scores = (q * q.shape[-1] ** -0.5) @ k.mT
            case "einsum":
                scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / width**0.5
            case "both sides":
                scores = (q * width**-0.25) @ (k * width**-0.25).mT
            case "literal":
                scores = (q @ k.mT) * 0.35355339059327373
            case _:
                assert self.scale is not None
                scores = (q @ k.mT) * self.scale
        return scores.softmax(-1) @ v


def halved(attention: nn.Module) -> None:
    """Half of the coordinates of each head's queries and keys, and of its values, at zero."""
    assert isinstance(attention, Attention)
    half = [
        h * attention.head_size + i for h in range(attention.heads) for i in range(0, attention.head_size, 2)
    ]
    for layer in (attention.query, attention.key, attention.value):
        kill(layer, zero=half)


@pytest.mark.parametrize(
    "spelling",
    ["fused", "scores divided", "scores times", "queries times", "einsum", "both sides", "literal", "held"],
)
def test_attention_keeps_its_scale_wherever_it_comes_from(spelling: str) -> None:
    net = nn.Sequential(Attention(spelling), nn.LayerNorm(12), Attention(spelling), nn.Linear(12, 3))
    for layer in net:
        if isinstance(layer, Attention):
            halved(layer)
    small = compacted(net, torch.randn(2, POSITIONS, 12, dtype=torch.float64)).model
    assert small.get_submodule("0.query").out_features == small.get_submodule("2.value").out_features == 8


@pytest.mark.parametrize("spelling", ["fused", "scores divided"])
def test_the_width_of_a_single_head_is_counted(spelling: str) -> None:
    net = nn.Sequential(Attention(spelling, heads=1), nn.Linear(12, 3))
    halved(net[0])
    small = compacted(net, torch.randn(2, POSITIONS, 12, dtype=torch.float64)).model
    assert small.get_submodule("0.query").out_features == 4


def test_heads_as_many_as_a_head_is_wide_stay() -> None:
    """In the second layer 4 may be the heads or the width; the first tells which of the attributes is which."""
    net = nn.Sequential(
        Attention("scores divided", 2, 8),
        Attention("scores divided", 4, 4),
        Attention("scores divided", 3, 4),
        nn.Linear(12, 3),
    )
    for layer in list(net)[:3]:
        halved(layer)
    small = compacted(net, torch.randn(2, POSITIONS, 12, dtype=torch.float64)).model
    assert [small.get_submodule(f"{i}.query").out_features for i in range(3)] == [8, 8, 6]


class Listed(nn.Module):
    """Splits by a list of widths, and holds a list of places with some of the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = [4, 8]
        self.places = [0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 8, 0]
        self.layer, self.one, self.other = nn.Linear(6, 12), nn.Linear(4, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layer(x).split(self.widths, dim=-1)
        rows: Tensor = self.one(first) + self.other(second)
        return rows[:, self.places]


def test_a_list_with_other_numbers_than_counts_is_left_alone() -> None:
    net = Listed()
    kill(net.layer, zero=[0, 1, 4, 5, 6, 7])
    small = compacted(net, torch.randn(2, 9, 6, dtype=torch.float64)).model
    assert isinstance(small, Listed)
    assert small.layer.out_features == 6 and tuple(small.widths) == (2, 4)
    assert small.places == net.places


class Checked(nn.Module):
    """A layer behind a check of what it is given, as in Hugging Face's patch embeddings."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.num_channels = channels
        self.projection = nn.Conv2d(channels, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.num_channels:
            raise ValueError("another number of channels than it was built for")
        return torch.relu(self.projection(x))


def test_a_forward_that_checks_what_its_layers_read_is_told_the_new_width() -> None:
    net = nn.Sequential(Checked(3, 8), Checked(8, 6), Checked(6, 4))
    kill(net[0].projection, zero=[1, 3, 5])
    kill(net[1].projection, zero=[0])
    small = compacted(net, torch.randn(2, 3, 9, 9, dtype=torch.float64)).model
    assert [getattr(part, "num_channels", None) for part in small.children()] == [3, 5, 5]
