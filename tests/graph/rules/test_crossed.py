"""Products over positions: attention over channels, and linear attention in several spellings."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compactmtl.graph import ChannelGraph
from tests.support.masking import compacted, image, kill, shape

HEADS, WIDTH = 3, 4
X = (2, 5, 12)


def _places(*columns: int) -> list[int]:
    """These columns of every head."""
    return [head * WIDTH + column for head in range(HEADS) for column in columns]


HEAD = list(range(WIDTH, 2 * WIDTH))  # the second one


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads = HEADS
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        """(B, H, N, D)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of q, k and v (B, H, N, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x)))
        z: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return z


Form = Literal["matmul", "fused", "einsum", "columns first"]
FORMS: tuple[Form, ...] = ("matmul", "fused", "einsum", "columns first")


class OverChannels(_Attention):
    """XCiT's: normalized queries and keys, a temperature for each head."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (value.transpose(-2, -1) for value in (q, k, v))  # (B, H, D, N)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.form == "fused":
            y = F.scaled_dot_product_attention(q * self.temperature, k, v, scale=1.0)
        elif self.form == "einsum":
            weights = (torch.einsum("bhdn,bhen->bhde", q, k) * self.temperature).softmax(-1)
            y = torch.einsum("bhde,bhen->bhdn", weights, v)
        elif self.form == "columns first":
            weights = ((k @ q.transpose(-2, -1)) * self.temperature).softmax(-2)
            y = torch.einsum("bhed,bhen->bhdn", weights, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1) @ v
        return y.transpose(-2, -1)


@pytest.mark.parametrize("form", FORMS)
def test_queries_go_with_what_reads_their_channel(form: Form) -> None:
    model = OverChannels(form)
    kill(model.out, unread=_places(1))
    result = compacted(model, image(*X))
    assert shape(result, "q.weight") == (9, 12) and shape(result, "out.weight") == (12, 9)
    assert shape(result, "k.weight") == shape(result, "v.weight") == (12, 12)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_of_zeros_goes_with_all_that_it_is_made_of(form: Form) -> None:
    model = OverChannels(form)
    kill(model.v, zero=HEAD)
    result = compacted(model, image(*X))
    assert {shape(result, f"{name}.weight")[0] for name in "qkv"} == {8}
    assert shape(result, "temperature") == (2, 1, 1) and shape(result, "out.weight") == (12, 8)


@pytest.mark.parametrize("form", FORMS)
def test_zeros_that_are_compared_stay(form: Form) -> None:
    """A query of zeros gives the mean of the values, and a key of zeros counts as much as any other."""
    model = OverChannels(form)
    kill(model.q, zero=_places(1))
    kill(model.k, zero=_places(2))
    kill(model.v, zero=_places(2))
    result = compacted(model, image(*X))
    assert {shape(result, f"{name}.weight")[0] for name in "qkv"} == {12}


def test_no_group_promises_that_zero_queries_go() -> None:
    graph = ChannelGraph.trace(OverChannels("matmul").eval(), (torch.randn(*X),))
    written = {m.parameter for f in graph.groups() for m in f.members if m.role == "producer"}
    assert not written & {"q.weight", "k.weight", "v.weight"}


def test_where_something_else_reads_the_matrix_all_stays() -> None:
    class Shown(OverChannels):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weights = (q.transpose(-2, -1) @ k).softmax(-1)
            return (weights @ v.transpose(-2, -1)).transpose(-2, -1) + weights.mean()

    model = Shown("matmul")
    kill(model.out, unread=_places(1))
    kill(model.v, zero=HEAD)
    result = compacted(model, image(*X))
    assert shape(result, "q.weight") == (12, 12) and shape(result, "v.weight") == (12, 12)


Normalizer = Literal["none", "padded", "summed", "einsum"]
NORMALIZERS: tuple[Normalizer, ...] = ("none", "padded", "summed", "einsum")


class LinearAttention(_Attention):
    """q (kᵀ v) with a feature map, divided by what the queries give with the sum of the keys."""

    def __init__(self, normalizer: Normalizer, features: Any = torch.relu) -> None:
        super().__init__()
        self.normalizer, self.features = normalizer, features

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.features(q), self.features(k)
        if self.normalizer == "padded":  # EfficientViT's
            y = q @ (k.transpose(-2, -1) @ F.pad(v, (0, 1), value=1.0))
            return y[..., :-1] / (y[..., -1:] + 1e-5)
        if self.normalizer == "einsum":
            y = torch.einsum("bhnd,bhde->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v))
            return y / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1e-5).unsqueeze(-1)
        y = q @ (k.transpose(-2, -1) @ v)
        if self.normalizer == "summed":
            y = y / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-5)
        return y


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_widths_of_linear_attention(normalizer: Normalizer) -> None:
    model = LinearAttention(normalizer)
    kill(model.q, zero=_places(1))
    kill(model.k, zero=_places(3))
    kill(model.v, zero=_places(0))
    kill(model.out, unread=_places(2))
    result = compacted(model, image(*X))
    assert shape(result, "v.weight") == (6, 12) and shape(result, "out.weight") == (12, 6)
    if normalizer != "summed":
        assert shape(result, "q.weight") == shape(result, "k.weight") == (6, 12)


@pytest.mark.parametrize("normalizer", ["none", "padded", "einsum"])
@pytest.mark.parametrize("dead", ["q", "k", "v"])
def test_a_head_of_linear_attention_goes(normalizer: Normalizer, dead: str) -> None:
    model = LinearAttention(normalizer)
    kill(model.get_submodule(dead), zero=HEAD)
    result = compacted(model, image(*X))
    assert {shape(result, f"{name}.weight")[0] for name in "qkv"} == {8}


def _elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


@pytest.mark.parametrize("normalizer", ["padded", "einsum"])
def test_a_feature_map_that_makes_no_zeros_keeps_queries_and_keys(normalizer: Normalizer) -> None:
    model = LinearAttention(normalizer, _elu)
    kill(model.q, zero=_places(1))
    kill(model.k, zero=_places(1))
    kill(model.v, zero=_places(0))
    result = compacted(model, image(*X))
    assert shape(result, "q.weight") == (12, 12) and shape(result, "v.weight") == (9, 12)


def test_the_groups_of_linear_attention_are_what_goes() -> None:
    graph = ChannelGraph.trace(LinearAttention("none").eval(), (torch.randn(*X),))
    sizes = {family.name: family.size for family in graph.groups()}
    assert {sizes.get(name) for name in ("q", "v")} == {WIDTH}
