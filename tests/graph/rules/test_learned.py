"""Operators without a rule: what is found by running them, and what they then let go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compactmtl.graph import ChannelGraph
from compactmtl.graph.calls import operator
from compactmtl.graph.effect import Kept
from compactmtl.graph.probe import _digest
from tests.support.masking import Between, all_left, compacted, image, kill, shape

Function = Callable[[Tensor], Tensor]

PLACES = torch.tensor([3, 1, 2, 0, 4])


def _grid(x: Tensor) -> Tensor:
    one = torch.linspace(-1, 1, 6, dtype=x.dtype)
    return torch.stack(torch.meshgrid(one, one, indexing="ij"), -1).expand(x.shape[0], 6, 6, 2)


# Each keeps channels apart and makes zeros of zeros: of 8 channels the zero goes, and the two other constants stay.
FOLLOWED: dict[str, Function] = {
    "grid_sample": lambda x: F.grid_sample(x, _grid(x), align_corners=False),
    "index of positions": lambda x: x.flatten(2)[:, :, PLACES, None],
    "index_select of positions": lambda x: x.index_select(2, PLACES),
    "gather of positions": lambda x: x.flatten(2).gather(2, PLACES.expand(len(x), x.shape[1], -1))[..., None],
    "take along positions": lambda x: torch.take_along_dim(x, PLACES[None, None, :, None], 2),
    "index_add": lambda x: torch.zeros_like(x[:, :, :4]).index_add(2, torch.arange(8) % 4, x),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x)).sum(-1),
    "fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    "triangle": lambda x: x.tril(),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3)[..., None],
}


def test_operators_that_keep_channels_apart_pass_zeros() -> None:
    kept, reasons = all_left(FOLLOWED)
    assert kept == dict.fromkeys(FOLLOWED, 7)
    assert all("no rule" not in reason and "mixes" not in reason for reason in reasons.values())


def test_what_they_pass_may_also_be_unread() -> None:
    """A log of sums makes no zeros, and of what nothing reads all goes."""
    model = Between(lambda x: x.logcumsumexp(2))
    kill(model.last, unread=[0, 3])
    assert shape(compacted(model, image()), "first.weight")[0] == 6


# What the channels of each operand become, by the operator's name.
WHERE: dict[str, tuple[Function, list[Kept]]] = {
    "grid_sampler": (FOLLOWED["grid_sample"], [Kept(1)]),
    "im2col": (lambda x: F.unfold(x, 2, stride=2), [Kept(1, 4)]),
    "logcumsumexp": (lambda x: x.permute(2, 3, 0, 1).logcumsumexp(0), [Kept(3)]),
}


@pytest.mark.parametrize("name", WHERE)
def test_where_channels_lie_in_the_result(name: str) -> None:
    function, expected = WHERE[name]

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.first(x))

    graph = ChannelGraph.trace(Read().double(), (image(),))
    node = next(call for call in graph.calls if operator(call) == name)
    learned = graph._state.effects[node].learned
    assert learned is not None
    assert [kept for own in learned.followed for kept in own.kept] == expected


class Product(nn.Module):
    """Two layers into one operator of two tensors."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], dead: tuple[list[int], list[int]]
    ) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.function = function
        kill(self.one, zero=dead[0])
        kill(self.two, zero=dead[1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.one(x), self.two(x)))
        return y


@pytest.mark.parametrize(("dead", "left"), [(([0, 1], [0, 2]), 7), (([0, 1], [0, 1]), 6), (([0, 1], []), 8)])
def test_a_sum_is_zero_where_both_operands_are(dead: tuple[list[int], list[int]], left: int) -> None:
    model = Product(lambda x, y: torch.view_as_real(torch.complex(x, y)).sum(-1), dead)
    result = compacted(model, image())
    assert shape(result, "one.weight")[0] == shape(result, "two.weight")[0] == left


class Rotary(nn.Module):
    """Attention whose queries and keys are turned as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v, self.out = nn.Linear(6, 32), nn.Linear(6, 16), nn.Linear(16, 3)
        angle = torch.arange(5)[:, None] * torch.tensor([1.0, 0.1])[None]
        self.turn: Tensor
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k = self.qk(x).chunk(2, -1)
        v = self.v(x).view(batch, length, 4, -1).transpose(1, 2)
        q, k = (self._turned(one.view(batch, length, 4, -1).transpose(1, 2)) for one in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * self.turn.to(pairs.dtype)).flatten(-2)


def test_pairs_of_turned_queries_and_keys_go() -> None:
    model = Rotary()
    with torch.no_grad():  # one of the two pairs of each head
        for rows in (torch.arange(32).view(-1, 4)[:, 2:].flatten(),):
            model.qk.weight[rows] = 0
            model.qk.bias[rows] = 0
    result = compacted(model, image(2, 5, 6))
    assert shape(result, "qk.weight")[0] == 16 and shape(result, "turn") == (5, 1)


class Tabled(nn.Module):
    """Attention with biases out of a table of relative positions, and position embeddings."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = 3, fused
        self.embed, self.out = nn.Linear(6, 8), nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.positions = nn.Embedding(5, 8)
        self.table = nn.Parameter(torch.randn(9, 3))
        places = torch.arange(5)
        self.index: Tensor
        self.register_buffer("index", places[:, None] - places[None] + 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        x = self.embed(x) + self.positions(torch.arange(length))
        q, k, v = (
            one(x).view(batch, length, self.heads, -1).transpose(1, 2) for one in (self.q, self.k, self.v)
        )
        bias = self.table[self.index.flatten()].view(length, length, -1).permute(2, 0, 1)[None]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)
        else:
            y = ((q @ k.mT) * 0.5 + bias).softmax(-1) @ v
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize("fused", [True, False])
def test_a_head_goes_with_its_column_of_a_table_of_positions(fused: bool) -> None:
    model: Any = Tabled(fused)
    kill(model.embed, zero=[1, 4])
    with torch.no_grad():
        model.positions.weight[:, [1, 4]] = 0
    kill(model.v, zero=range(4, 8))  # whatever the second head attends to
    result = compacted(model, image(2, 5, 6))
    small: Any = result.model
    assert shape(result, "table") == (9, 2) and small.heads == 2
    assert [shape(result, f"{name}.weight") for name in "qkv"] == [(8, 6)] * 3
    assert shape(result, "positions.weight") == (5, 6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_column_of_a_table_is_no_group_of_its_own(fused: bool) -> None:
    graph = ChannelGraph.trace(Tabled(fused), (torch.randn(2, 5, 6),))
    assert not [m for family in graph.groups() for m in family.members if m.parameter == "table"]


@pytest.mark.parametrize("fused", [True, False])
def test_widths_of_heads_go_beside_a_table_of_positions(fused: bool) -> None:
    model: Any = Tabled(fused)
    kill(model.v, zero=[0, 5, 11])  # one of each head
    kill(model.q, zero=[1, 4, 8])
    kill(model.k, zero=[1, 4, 8])
    result = compacted(model, image(2, 5, 6))
    assert [shape(result, f"{name}.weight")[0] for name in "qkv"] == [9] * 3
    assert shape(result, "table") == (9, 3)


def test_columns_of_an_embedding_go() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, words: Tensor) -> Tensor:
            y: Tensor = self.out(F.relu(self.norm(self.words(words))) * x)
            return y

    model: Any = Words()
    with torch.no_grad():
        model.words.weight[:, [2, 5]] = 0
        model.words.weight[:, 6] = 0.5
    words = torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(0))
    result = compacted(model, image(2, 4, 1), words)
    assert shape(result, "words.weight") == (11, 5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_deformable_convolution_is_one(bias: bool) -> None:
    ops = pytest.importorskip("torchvision.ops")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.places = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 18, 3, padding=1)
            self.middle = ops.DeformConv2d(8, 8, 3, padding=1, bias=bias)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            out: Tensor = self.last(F.relu(self.middle(y, self.places(y))))
            return out

    model: Any = Deformed()
    kill(model.first, zero=[2], constant=[1, 5])
    kill(model.middle, zero=[0, 3, 4])
    kill(model.places, unread=range(8))  # the constants would move the places
    result = compacted(model, image())
    assert shape(result, "middle.weight") == (5, 6, 3, 3)  # with a carrier


def test_rois_keep_channels_apart() -> None:
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[0, 0.0, 0, 4, 4], [1, 1, 1, 6, 6]])
    model = Between(lambda x: ops.roi_align(x, boxes.to(x.dtype), (3, 3)))
    assert shape(compacted(model, image()), "first.weight")[0] == 7


@torch.library.custom_op("compactmtl_tests::over_maximum", mutates_args=())
def _over_maximum(x: Tensor) -> Tensor:
    return x / x.max()


@_over_maximum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_division_by_the_largest_value_is_never_taken_for_pointwise() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.ops.compactmtl_tests.over_maximum(self.first(x))
            return y

    model = Read().double()
    for height in range(8, 13):  # each has its own draws; at one of them no change met the largest value once
        graph = ChannelGraph.trace(model, (image(1, 3, height, 3),))
        (node,) = (call for call in graph.calls if "over_maximum" in str(call.target))
        assert "mixes the channels" in graph.barriers[node]


NUMBERS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    "value",
    [
        NUMBERS.to(torch.float8_e4m3fn),
        NUMBERS.bfloat16(),
        NUMBERS.to(torch.complex64),
        torch.complex(NUMBERS, NUMBERS).conj().imag,  # its sign is a mark beside the numbers
        NUMBERS.long(),
        NUMBERS > 2,
    ],
    ids=lambda value: str(value.dtype),
)
def test_contents_of_every_type_are_told_apart(value: Tensor) -> None:
    assert _digest(value) == _digest(value.clone())
    assert _digest(value) != _digest(value.t())
