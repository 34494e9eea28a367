"""Whole heads of attention and whole groups of a convolution go; the rest of the others stays even."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.surgery import apply_plan
from compactmtl.surgery.plan import Plan
from tests.support.masking import assert_close, compacted, kill

HEADS, WIDTH = 4, 6
DIM = HEADS * WIDTH


class Attention(nn.Module):
    """Heads by an attribute, as most networks have it; one layer for all three, or three."""

    def __init__(self, joint: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH
        self.embed = nn.Linear(5, DIM)
        if joint:
            self.qkv = nn.Linear(DIM, 3 * DIM)
        else:
            self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.proj = nn.Linear(DIM, 5)
        self.joint = joint

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length = x.shape[:2]
        if self.joint:
            qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        else:
            q, k, v = (
                layer(x).reshape(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        z: Tensor = self.proj(y.reshape(batch, length, self.num_heads * self.head_dim))
        return z


def _head(head: int, part: int = 0) -> list[int]:
    return [part * DIM + head * WIDTH + entry for entry in range(WIDTH)]


@pytest.mark.parametrize("joint", [True, False], ids=["one layer", "three layers"])
@pytest.mark.parametrize("how", ["unread", "zero", "constant"])
def test_a_head_without_effect_goes_whole(joint: bool, how: str) -> None:
    torch.manual_seed(0)
    net = Attention(joint)
    values: Any = net.qkv if joint else net.v
    rows = _head(1, 2 if joint else 0)
    if how == "unread":
        kill(net.proj, unread=_head(1))
    else:
        kill(values, **{how: rows})
    result = compacted(net, torch.randn(2, 7, 5, dtype=torch.float64))
    small: Any = result.model
    assert small.num_heads == 3 and small.head_dim == WIDTH
    assert small.proj.in_features == 3 * WIDTH
    layers = [small.qkv] if joint else [small.q, small.k, small.v]
    assert sum(layer.out_features for layer in layers) == 9 * WIDTH
    rebuilt = apply_plan(Attention(joint).double(), Plan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    assert_close(net(x), rebuilt.eval()(x))


def test_a_head_goes_beside_dimensions_of_the_others() -> None:
    torch.manual_seed(0)
    net = Attention(True)
    kill(net.proj, unread=_head(2))
    net.get_submodule("qkv").get_parameter("weight").data[[0, 6, 13, 19]] = 0  # a dimension of each query ...
    net.get_submodule("qkv").get_parameter("bias").data[[0, 6, 13, 19]] = 0
    kill(net.qkv, zero=[48, 49, 54, 55, 68, 69])  # ... and two of each value
    small: Any = compacted(net, torch.randn(2, 7, 5, dtype=torch.float64)).model
    assert small.num_heads == 3


def test_a_dead_query_with_live_values_keeps_its_head() -> None:
    torch.manual_seed(0)
    net = Attention(True)
    kill(net.qkv, zero=_head(3))
    small: Any = compacted(net, torch.randn(2, 7, 5, dtype=torch.float64)).model
    assert small.num_heads == HEADS


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 24, 3, padding=padding, groups=4)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return y


@pytest.mark.parametrize("spare", [False, True], ids=["alone", "beside channels of the others"])
def test_a_group_without_effect_goes_whole(spare: bool) -> None:
    torch.manual_seed(0)
    net = Grouped()
    kill(net.last, unread=range(6, 12))
    if spare:
        kill(net.last, unread=[0, 12, 18, 23])
        kill(net.first, zero=[0, 9, 15])
    result = compacted(net, torch.randn(2, 3, 12, 12, dtype=torch.float64))
    small: Any = result.model
    assert small.middle.groups == 3
    assert (small.middle.in_channels, small.middle.out_channels) == ((9, 15) if spare else (12, 18))
    rebuilt = apply_plan(Grouped().double(), Plan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert_close(net(x), rebuilt.eval()(x))
