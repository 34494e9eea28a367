"""Attention: heads and widths of queries, keys and values, fused and written out."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.masking import compacted, image, kill, shape

Form = Literal["fused", "fused with scale", "written out"]
FORMS: tuple[Form, ...] = ("fused", "fused with scale", "written out")
HEADS, WIDTH = 3, 4


class Separate(nn.Module):
    """Queries, keys and values from layers of their own."""

    def __init__(self, form: Form, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.masked, self.head_dim = form, masked, WIDTH
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.masked else None
        if self.form == "written out":
            scores = q @ k.transpose(-2, -1) * WIDTH**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            y = scores.softmax(-1) @ v
        else:
            scale = 0.5 if self.form == "fused with scale" else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        z: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return z


def _places(*columns: int) -> list[int]:
    """These columns of every head."""
    return [head * WIDTH + column for head in range(HEADS) for column in columns]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_widths_of_queries_and_keys_go_together(form: Form, masked: bool) -> None:
    model = Separate(form, masked)
    kill(model.q, zero=_places(1))
    kill(model.k, zero=_places(3))
    result = compacted(model, image(2, 5, 12))
    assert shape(result, "q.weight") == shape(result, "k.weight") == (HEADS * 2, 12)
    assert shape(result, "v.weight") == (12, 12)
    assert bool(result.plan.scales) == (form == "fused")  # its default scale follows the width


@pytest.mark.parametrize("form", FORMS)
def test_uneven_heads_keep_the_width_of_the_fullest(form: Form) -> None:
    model = Separate(form)
    kill(model.q, zero=[0, 1, 2, 5, 9, 10])  # 3, 1 and 2 of each head's four
    assert shape(compacted(model, image(2, 5, 12)), "q.weight")[0] == HEADS * 3


@pytest.mark.parametrize("form", FORMS)
def test_widths_of_values_go_with_what_reads_them(form: Form) -> None:
    model = Separate(form)
    kill(model.v, zero=_places(0))
    kill(model.out, unread=_places(2))
    result = compacted(model, image(2, 5, 12))
    assert shape(result, "v.weight") == (HEADS * 2, 12) and shape(result, "out.weight") == (12, HEADS * 2)


def test_constant_values_pass_for_attention_weights_sum_to_one() -> None:
    model = Separate("fused")
    kill(model.v, constant=_places(0))
    result = compacted(model, image(2, 5, 12))
    assert shape(result, "v.weight")[0] == HEADS * 3
    assert [shift.bias for shift in result.plan.biases] == ["out.bias"]


def test_constant_queries_are_not_dropped() -> None:
    model = Separate("fused with scale")
    kill(model.q, constant=_places(1))
    assert shape(compacted(model, image(2, 5, 12)), "q.weight")[0] == 12


class Joint(nn.Module):
    """One layer for all three, as (3, heads, width)."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.num_heads, self.head_dim, self.scale = fused, HEADS, WIDTH, WIDTH**-0.5
        self.qkv, self.proj = nn.Linear(6, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        z: Tensor = x + self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return z


@pytest.mark.parametrize("fused", [True, False])
def test_joint_layer_keeps_one_width_for_all_three(fused: bool) -> None:
    model = Joint(fused)
    columns = _places(1)
    kill(model.qkv, zero=[*columns, *(12 + c for c in columns), *(24 + c for c in columns)])
    result = compacted(model, image(2, 5, 6))
    assert shape(result, "qkv.weight") == (3 * HEADS * 3, 6)
    assert shape(result, "proj.weight") == (6, HEADS * 3)
    assert result.model.get_submodule("").head_dim == 3


@pytest.mark.parametrize("fused", [True, False])
def test_joint_layer_with_uneven_thirds_is_exact(fused: bool) -> None:
    model = Joint(fused)
    kill(model.qkv, zero=[*_places(1, 2), *(24 + c for c in _places(3))])
    compacted(model, image(2, 5, 6))


def test_whole_dead_head_keeps_its_place_and_is_exact() -> None:
    model = Separate("fused")
    kill(model.v, zero=range(4, 8))
    kill(model.out, unread=range(4, 8))
    compacted(model, image(2, 5, 12))


def test_torch_multihead_attention_is_exact() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            z: Tensor = self.down(self.attention(y, y, y, need_weights=False)[0])
            return z

    model = Wrapped()
    kill(model.up, zero=[1])
    kill(model.down, unread=[2])
    compacted(model, image(2, 5, 6), rolled_back=True)  # it checks its width against a number of its own


def test_cross_attention_of_two_inputs() -> None:
    class Cross(Separate):
        def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
            assert memory is not None
            y = F.scaled_dot_product_attention(
                self.heads(self.q(x)), self.heads(self.k(memory)), self.heads(self.v(memory))
            )
            z: Tensor = self.out(y.transpose(1, 2).flatten(2))
            return z

    model = Cross("fused")
    kill(model.q, zero=_places(0))
    kill(model.v, zero=_places(1, 2))
    result = compacted(model, image(2, 5, 12), image(2, 7, 12))
    assert shape(result, "k.weight")[0] == HEADS * 3 and shape(result, "v.weight")[0] == HEADS * 2
