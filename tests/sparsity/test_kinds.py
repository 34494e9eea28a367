"""Kinds of channel groups: what each holds, and what its zeros truly free."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.graph import cost
from compactmtl.sparsity import ChannelGroups, LatencyTable, LayerLatency, channel_groups
from compactmtl.surgery import compact

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem and a block that adds to it, each with a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.inner = nn.Conv2d(10, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 10, 1, bias=False)
        self.last = nn.BatchNorm2d(10)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.last(self.outer(self.inner(x).relu()))).relu()
        output: Tensor = self.head(x)
        return output


class Attention(nn.Module):
    """One block of self-attention over an image's pixels."""

    def __init__(self, heads: int = 4, width: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, -1))
        output: Tensor = self.out(x.mean(1))
        return output


@pytest.fixture
def residual() -> Residual:
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        for norm in (model.norm, model.last):
            norm.bias.uniform_(-1, 1)
    return model


def kill(
    groups: ChannelGroups, family: int, dead: list[int]
) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    flags = torch.zeros(groups[family].size, dtype=torch.bool)
    flags[dead] = True
    with torch.no_grad():
        for s in groups.bound[family].tensors:
            s.zero_(s.parameter, flags)
    return groups.alive()


def names(groups: ChannelGroups) -> list[set[str]]:
    return [{m.parameter for m in family.members} for family in groups]


def test_filters_lie_in_one_layer_with_its_bias_and_its_norm(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE, kind="filter")
    assert names(groups) == [
        {"stem.weight", "norm.weight", "norm.bias"},
        {"inner.weight", "inner.bias"},
        {"outer.weight", "last.weight", "last.bias"},
    ]
    assert groups[1].macs_per_channel == 64 * 10 * 9
    assert groups[1].parameters_per_channel == 10 * 9 + 1
    assert not groups.direct


def test_filters_on_a_residual_stream_free_a_channel_only_together(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE, kind="filter")
    macs = groups.cost("macs")
    whole = macs(groups.whole())
    assert macs(kill(groups, 0, [1, 2])) == whole
    # channel 2 of both: 9·3 + 9·6 (the block reads it) + 6 (and writes it) + 2 (the head) at 64 pixels
    assert whole - macs(kill(groups, 2, [2, 3])) == 64 * (27 + 54 + 6 + 2)


def test_input_channels_free_a_channel_that_nothing_reads(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE, kind="input_channel")
    assert names(groups) == [{"inner.weight"}, {"outer.weight"}, {"head.weight"}]
    macs, parameters = groups.cost("macs"), groups.cost("parameters")
    before = macs(groups.whole()), parameters(groups.whole())
    assert macs(kill(groups, 0, [4])) == before[0], "the head reads it too"
    alive = kill(groups, 2, [4])
    alive = kill(groups, 1, [0])
    small = compact(residual, (IMAGE,)).model
    counted = cost(small, (IMAGE,))
    assert macs(alive) == counted.macs
    assert parameters(alive) == counted.parameters


@pytest.mark.parametrize("kind", ["coupled", "block", "filter"])
def test_what_is_counted_is_what_surgery_removes(residual: Residual, kind: str) -> None:
    groups = channel_groups(residual, IMAGE, kind=kind, block=4)  # type: ignore[arg-type]
    assert groups.cost("macs")(groups.whole()) == cost(residual, (IMAGE,)).macs
    assert groups.cost("parameters")(groups.whole()) == cost(residual, (IMAGE,)).parameters
    for family in range(len(groups)):
        if kind != "block" or family in (0, 2):  # a layer keeps one channel
            kill(groups, family, [0])
    counted = cost(compact(residual, (IMAGE,)).model, (IMAGE,))
    assert groups.cost("macs")(groups.alive()) == counted.macs < groups.cost("macs")(groups.whole())
    assert groups.cost("parameters")(groups.alive()) == counted.parameters


def test_blocks_hold_neighbors_and_one_the_rest(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE, kind="block", block=4)
    assert [family.size for family in groups] == [2, 1, 1, 1]
    stem = next(m for m in groups[0].members if m.parameter == "stem.weight")
    assert stem.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    rest = next(m for m in groups[1].members if m.parameter == "stem.weight")
    assert rest.indices.tolist() == [[8, 9]]
    coupled = channel_groups(residual, IMAGE)
    assert groups[0].macs_per_channel == 4 * coupled[0].macs_per_channel


def test_a_head_goes_whole() -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    groups = channel_groups(model, IMAGE, kind="attention_head")
    assert names(groups) == [{"qkv.weight", "qkv.bias"}]
    assert groups[0].size == 4
    rows = next(m for m in groups[0].members if m.parameter == "qkv.weight").indices
    assert rows[1].tolist() == [3, 4, 5, 15, 16, 17, 27, 28, 29]
    alive = kill(groups, 0, [1, 3])
    macs = groups.cost("macs")
    # half of the queries, keys and values, of what reads them, and of attention itself, for four pixels
    assert macs(groups.whole()) - macs(alive) == 4 * (18 * 12 + 6 * 12) + 2 * 4 * 4 * (3 + 3)
    assert groups.direct
    small = compact(model, (IMAGE,)).model
    assert small.get_parameter("qkv.weight").shape == (18, 12)


@pytest.mark.parametrize("gone", [[1], [0, 2]])
def test_a_head_of_three_goes_beside_the_three_of_queries_keys_and_values(gone: list[int]) -> None:
    torch.manual_seed(0)
    model = Attention(heads=3).eval()
    groups = channel_groups(model, IMAGE, kind="attention_head")
    alive = kill(groups, 0, gone)
    small = compact(model, (IMAGE,)).model
    assert small.get_parameter("qkv.weight").shape == (36 - 12 * len(gone), 12)
    parameters = sum(parameter.numel() for parameter in small.parameters())
    assert groups.cost("parameters")(alive) == parameters


def test_a_model_without_the_kind() -> None:
    with pytest.raises(ConfigError, match="no attention_head channel groups") as caught:
        channel_groups(Residual(), IMAGE, kind="attention_head")
    assert "attention" in caught.value.hint
    with pytest.raises(ConfigError, match="block of 1"):
        channel_groups(Residual(), IMAGE, kind="block", block=1)


def table(residual: Residual) -> LatencyTable:
    def layer(outputs: int, inputs: int, ms: float) -> LayerLatency:
        # in proportion to both widths
        return LayerLatency(
            outputs=(1, outputs),
            inputs=(1, inputs),
            ms=((ms / outputs / inputs, ms / outputs), (ms / inputs, ms)),
        )

    return LatencyTable(
        target="paper",
        rest_ms=1.0,
        layers={
            "stem": layer(10, 3, 2.0),
            "inner": layer(6, 10, 4.0),
            "outer": layer(10, 6, 1.0),
            "head": layer(2, 10, 2.0),
        },
    )


def test_latency_is_the_sum_of_the_layers_at_their_widths(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE)
    milliseconds = groups.cost("latency", table(residual))
    assert milliseconds(groups.whole()) == pytest.approx(10.0)
    half = [np.arange(family.size) < family.size // 2 for family in groups]
    assert milliseconds(half) == pytest.approx(1 + 2 / 2 + 4 / 4 + 1 / 4 + 2 / 2)


def test_a_table_of_another_network(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE)
    with pytest.raises(ConfigError, match="needs a table"):
        groups.cost("latency")
    other = table(residual)
    missing = other.model_copy(update={"layers": {k: v for k, v in other.layers.items() if k != "outer"}})
    with pytest.raises(ConfigError, match="no layer 'outer'"):
        groups.cost("latency", missing)
    narrow = other.layers["inner"].model_copy(update={"outputs": (1, 5)})
    wrong = other.model_copy(update={"layers": {**other.layers, "inner": narrow}})
    with pytest.raises(ConfigError, match=r"'inner' with .* up to \(5, 10\), the network with \(6, 10\)"):
        groups.cost("latency", wrong)


def test_groups_after_channels_were_removed_count_from_the_first(residual: Residual) -> None:
    groups = channel_groups(residual, IMAGE)
    macs = groups.cost("macs")
    keep = groups.whole()
    keep[1][[0, 3]] = False
    kept = {
        ("inner.weight", 0): np.array([1, 2, 4, 5]),
        ("inner.bias", 0): np.array([1, 2, 4, 5]),
        ("outer.weight", 1): np.array([1, 2, 4, 5]),
    }
    small = Residual()
    small.inner, small.outer = nn.Conv2d(10, 4, 3, padding=1), nn.Conv2d(4, 10, 1, bias=False)
    remaining, survivors = groups.after(kept, small)
    assert [family.size for family in remaining] == [10, 4]
    assert survivors[1].tolist() == [1, 2, 4, 5]
    assert remaining.cost("macs")(remaining.whole()) == macs(keep)
    fewer, again = remaining.whole(), [k.copy() for k in keep]
    fewer[1][0], again[1][1] = False, False
    assert remaining.cost("macs")(fewer) == macs(again)
