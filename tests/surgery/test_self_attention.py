"""Attention whose forward counts its own channels by those of the stream: split into layers that are cut apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.surgery import apply_plan, compact
from compactmtl.surgery.self_attention import ChannelAttention, ClassAttention, split_form
from tests.support.masking import assert_close, compacted, image, kill, shape


class Cross(nn.Module):
    """Over channels, as XCiT's."""

    def __init__(self, width: int = 12, heads: int = 3, power: float = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads, self.power = heads, power
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.qkv, self.last = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, self.power, dim=-1), F.normalize(k, self.power, dim=-1)
        weights = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        y: Tensor = self.last((weights @ v).permute(0, 3, 1, 2).reshape(b, n, c))
        return y


class OfClass(nn.Module):
    """Of the first token, as CaiT's."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_heads = heads
        self.q, self.k, self.v, self.last = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        each = c // self.num_heads
        q = self.q(x[:, 0]).unsqueeze(1).reshape(b, 1, self.num_heads, each).permute(0, 2, 1, 3)
        k = self.k(x).reshape(b, n, self.num_heads, each).permute(0, 2, 1, 3)
        v = self.v(x).reshape(b, n, self.num_heads, each).permute(0, 2, 1, 3)
        y = F.scaled_dot_product_attention(q, k, v)
        z: Tensor = self.last(y.transpose(1, 2).reshape(b, 1, c))
        return z


@pytest.mark.parametrize(("make", "form"), [(Cross, ChannelAttention), (OfClass, ClassAttention)])
def test_it_gives_what_the_attention_gives(make: type[nn.Module], form: type[nn.Module]) -> None:
    module = make().double().eval()
    split = split_form(module)
    assert isinstance(split, form)
    assert_close(module(image(2, 5, 12)), split(image(2, 5, 12)))


def test_what_gives_something_else_is_not_taken_for_one() -> None:
    assert split_form(Cross(power=1.0).eval()) is None
    assert split_form(nn.MultiheadAttention(12, 3)) is None


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.attention, self.out = nn.Linear(6, 12), attention, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        z: Tensor = self.out(y + self.attention(y))
        return z


STREAM = [1, 2, 7]


@pytest.mark.slow
@pytest.mark.parametrize("make", [Cross, OfClass])
def test_the_stream_shrinks_without_the_heads(make: Any) -> None:
    model = Block(make())
    kill(model.embed, zero=STREAM)
    kill(model.attention.last, zero=STREAM)
    result = compacted(model, image(2, 5, 6))
    assert result.plan.contracted == ("attention",)
    assert shape(result, "embed.weight") == (9, 6) and shape(result, "out.weight") == (3, 9)
    assert {shape(result, f"attention.{name}.weight") for name in "qkv"} == {(12, 9)}
    assert_close(apply_plan(model, result.plan)(image(2, 5, 6)), result.model(image(2, 5, 6)))


@pytest.mark.slow
def test_queries_that_nothing_reads_leave_keys_and_values_as_they_are() -> None:
    model = Block(Cross())
    kill(model.attention.last, unread=[0, 4, 8])  # one of each head
    result = compacted(model, image(2, 5, 6))
    assert shape(result, "attention.q.weight") == (9, 12) and shape(result, "attention.k.weight") == (12, 12)


def test_where_nothing_goes_it_stays_what_it_was() -> None:
    result = compacted(Block(Cross()), image(2, 5, 6))
    assert isinstance(result.model.get_submodule("attention"), Cross) and not result.plan.contracted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xcit.XCA", "edgenext.CrossCovarianceAttn", "cait.ClassAttn"])
def test_those_of_timm_are_known(name: str) -> None:
    import timm.models

    torch.manual_seed(0)
    module, _, kind = name.partition(".")
    attention = getattr(getattr(timm.models, module), kind)(12, num_heads=3, qkv_bias=True).eval()
    assert split_form(attention) is not None


@pytest.mark.slow
def test_linear_attention_of_efficientvit_loses_widths() -> None:
    from timm.models.efficientvit_mit import LiteMLA

    class Lite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.attention = nn.Conv2d(3, 16, 1), LiteMLA(16, 16, dim=4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.attention(self.first(x))
            return y

    model = Lite()
    own: Any = model.attention
    dead = [12 * head + 4 * part + 1 for head in range(4) for part in range(3)]  # one of q, k and v each
    with torch.no_grad():
        own.qkv.conv.weight[dead] = 0
        own.aggreg[0][1].weight[dead] = 0
    result = compact(
        model.eval(), (image(2, 3, 8, 8).float(),)
    )  # it computes in float32, whatever it is given
    assert result.report.proof.passed and not result.report.not_pruned
    assert shape(result, "attention.qkv.conv.weight") == (36, 16, 1, 1)
