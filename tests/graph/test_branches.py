"""Residual branches: where they are found, and what switches them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compactmtl.graph import ChannelGraph
from compactmtl.graph.branches import Branch, find_branches


def found(model: nn.Module, *size: int) -> list[Branch]:
    return find_branches(ChannelGraph.trace(model, (torch.randn(*size),)))


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.down = nn.Conv2d(width, out, 1, stride) if (width, stride) != (out, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 12, 2), Block(12, 12))
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)))
        return out


def test_the_longer_way_of_each_block_is_its_branch() -> None:
    branches = found(Network(), 1, 3, 12, 12)
    assert [branch.name for branch in branches] == [f"blocks.{index}.bn2" for index in range(3)]
    for index, branch in enumerate(branches):
        assert branch.layers == {f"blocks.{index}.conv1", f"blocks.{index}.conv2"}
        assert {member.parameter for member in branch.members} == {
            f"blocks.{index}.bn2.weight",
            f"blocks.{index}.bn2.bias",
        }
        assert f"blocks.{index}.conv1.weight" in branch.parameters
    assert [branch.width for branch in branches] == [8, 12, 12]


class Layered(nn.Module):
    """Attention and an MLP with layer scales, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x * 2)).chunk(3, -1)
        x = x * 2 + self.proj((q @ k.mT).softmax(-1) @ v)
        x = x + self.gamma * self.down(F.gelu(self.up(self.norm2(x))))
        out: Tensor = self.head(x)
        return out


def test_halves_of_a_transformer_block_are_branches() -> None:
    attention, mlp = found(Layered(), 1, 5, 8)
    assert attention.name == "proj" and attention.layers == {"qkv", "proj"}
    assert {member.parameter for member in attention.members} == {"proj.weight", "proj.bias"}
    assert [member.parameter for member in mlp.members] == ["gamma"] and mlp.layers == {"up", "down"}


class Odd(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.other = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.function(self, self.first(x)))
        return y


def test_sums_of_other_kinds_are_no_branches() -> None:
    functions: list[Callable[..., Tensor]] = [
        lambda m, x: x + x.relu(),  # no layer
        lambda m, x: x + m.plain(m.inner(x)),  # a norm that nothing switches off
        lambda m, x: x + torch.sigmoid(m.inner(x)),  # no zeros of zeros
        lambda m, x: x + 1.0,
    ]
    assert [found(Odd(function), 1, 8, 4, 4) for function in functions] == [[], [], [], []]


def test_what_something_else_reads_stays() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        inner = m.inner(y.relu())
        return torch.cat([(x + inner)[:, :4], y[:, :4]], 1)

    (branch,) = found(Odd(twice), 1, 8, 4, 4)
    assert branch.layers == {"inner"}
