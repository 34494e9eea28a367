"""With a latency table what is slower without its dead channels keeps them, and the report says what that cost and saved."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compactmtl.cli.compact import table as printed
from compactmtl.errors import ConfigError
from compactmtl.graph import ChannelGraph
from compactmtl.sparsity import LatencyTable
from compactmtl.sparsity.layer_latency import LayerLatency, Regime, StaircaseLatency
from compactmtl.surgery import apply_plan, compact
from compactmtl.surgery.thin import Thinning
from tests.support.masking import TOLERANCE, assert_close, kill

PER_MAC = 1e-6  # milliseconds


def layer(outputs: int, inputs: int | None, align: int = 1, ragged: float = 1.0) -> StaircaseLatency:
    """A layer whose time goes with its MACs, and `ragged` times as slow where a count is no multiple of `align`."""
    term = {"both": PER_MAC} if inputs is not None else {"outputs": PER_MAC}
    slow = {name: ragged * value for name, value in term.items()}
    return StaircaseLatency(
        full=(outputs, inputs), align=align, aligned=Regime(step=1, **term), ragged=Regime(step=1, **slow)
    )


def table_of(layers: dict[str, StaircaseLatency], **facts: Any) -> LatencyTable:
    return LatencyTable(version=1, target="made-up", layers=layers, **facts)


def chain(width: int = 64) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)
    )


def chain_table(align: int, ragged: float, width: int = 64) -> LatencyTable:
    return table_of(
        {
            "0": layer(width, 6, align, ragged),
            "2": layer(width, width, align, ragged),
            "4": layer(5, width, align, ragged),
        }
    )


INPUT = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def timed(model: Any, table: LatencyTable, **settings: Any) -> Any:
    """Compact by a table, and hold it to the model and to what its plan rebuilds."""
    model = model.double().eval()
    result = compact(model, (INPUT,), table=table, tolerance=TOLERANCE, **settings)
    fresh = torch.randn(7, *INPUT.shape[1:], dtype=torch.float64)
    assert_close(model(fresh), result.model(fresh))
    assert_close(model(fresh), apply_plan(model, result.plan).eval()(fresh))
    return result


def test_a_few_channels_that_make_a_kernel_slow_stay() -> None:
    model = chain()
    kill(model[0], zero=range(4))
    result = timed(model, chain_table(16, 1.5))
    assert result.model[0].out_features == 64 and result.report.macs_after == result.report.macs_before
    (left,) = result.report.timing.left
    assert (left.name, left.channels) == ("0", 4)
    assert left.macs == 3 * 4 * (6 + 64)  # its own rows, and the columns of what reads them, for 3 samples
    aligned = (64 * 6 + 64 * 64) * PER_MAC
    assert left.milliseconds == pytest.approx(1.5 * (60 * 6 + 60 * 64) * PER_MAC - aligned)
    timing = result.report.timing
    assert timing.after == timing.before and timing.all_removed == pytest.approx(
        timing.after + left.milliseconds
    )
    assert "slower on made-up" in result.report.not_pruned["0"]


def test_many_channels_go_down_to_a_block() -> None:
    """Of 44 that could stay 48 do: the kernel takes 16 at a time."""
    model = chain()
    kill(model[0], zero=range(20))
    result = timed(model, chain_table(16, 1.5))
    assert result.model[0].out_features == 48
    (left,) = result.report.timing.left
    assert left.channels == 4 and left.macs == 3 * 4 * (6 + 64)
    timing = result.report.timing  # 44 at half the speed again are slower than 64
    assert timing.after < timing.before < timing.all_removed


def test_two_layers_are_slow_until_both_are_at_a_block() -> None:
    """One alone gains nothing: a kernel is fast where outputs and inputs both are."""
    model = chain()
    kill(model[0], zero=range(3))
    kill(model[2], zero=range(5))
    result = timed(model, chain_table(16, 3.0))
    assert [model.out_features for model in (result.model[0], result.model[2])] == [64, 64]
    assert {left.name: left.channels for left in result.report.timing.left} == {"0": 3, "2": 5}


@pytest.mark.parametrize("ragged", [1.0, 1.05, 1.1])
def test_what_is_not_clearly_slower_goes(ragged: float) -> None:
    """Four of 64 are 6 % of the work. A kernel that loses less by them is no reason, nor one that loses 3 % more than that."""
    model = chain()
    kill(model[0], zero=range(4))
    result = timed(model, chain_table(16, ragged))
    assert result.model[0].out_features == 60 and not result.report.timing.left
    assert result.report.timing.after == result.report.timing.all_removed


def test_without_a_table_all_goes_and_nothing_is_said() -> None:
    model = chain()
    kill(model[0], zero=range(4))
    result: Any = compact(model.double().eval(), (INPUT,))
    assert result.report.timing is None and result.model[0].out_features == 60
    assert result.report.to_json()["timing"] is None


class Stream(nn.Module):
    """A residual stream with norms over the channel."""

    def __init__(self, hidden: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(width, hidden) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(self.last(x))  # type: ignore[no-any-return]

    def table(self) -> LatencyTable:
        linear = {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}
        return table_of({name: layer(own.out_features, own.in_features) for name, own in linear.items()})

    def silence(self, channels: range) -> None:
        with torch.no_grad():
            for module in (self.stem, *self.downs):
                module.weight[list(channels)] = 0
                module.bias[list(channels)] = 0
            for norm in (*self.norms, self.last):
                norm.weight[list(channels)] = 0
                norm.bias[list(channels)] = 0


def test_a_norm_at_full_width_has_to_save_more_than_its_copy() -> None:
    torch.manual_seed(0)
    thin, thick = Stream(8), Stream(512)
    thin.silence(range(4))
    thick.silence(range(32))
    kept = timed(thin, thin.table())
    assert not kept.plan.full_width and kept.model.stem.out_features == 64
    (left,) = kept.report.timing.left
    assert (left.name, left.channels) == ("stem", 4) and left.milliseconds > 0
    assert left.macs == 3 * 4 * (6 + 2 * 8 + 2 * 8 + 5)
    gone = timed(thick, thick.table())
    assert len(gone.plan.full_width) == 3 and gone.model.stem.out_features == 32
    assert not gone.report.timing.left
    assert gone.report.timing.after < 0.6 * gone.report.timing.before


class Gathered(nn.Module):
    """A residual sum of whose channels a layer reads few."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.one = nn.Linear(6, width), nn.Linear(width, width)
        self.two, self.head = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.one(x))
        x = x + torch.relu(self.two(x))
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize(("faster", "ragged"), [(True, 1.0), (False, 40.0)])
def test_a_layer_takes_a_part_where_that_is_faster(
    faster: bool, ragged: float, by_index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Gathered(512)
    if by_index:  # what is read lies apart and keeps its order
        monkeypatch.setattr(Thinning, "moved", lambda self: [])
    kill(
        model.two,
        unread=[place for place in range(512) if place % 8 or not place] if by_index else range(449),
    )
    plain = compact(model.double().eval(), (INPUT,), gather=True)
    assert bool(plain.plan.gathers) == by_index and bool(plain.plan.spans) != by_index
    table = table_of(
        {
            "stem": layer(512, 6),
            "one": layer(512, 512),
            "two": layer(512, 512, 64, ragged),  # 63 inputs are no multiple
            "head": layer(5, 512),
        }
    )
    result = timed(model, table, gather=True)
    assert bool(result.plan.gathers or result.plan.spans) == faster
    parts = [left for left in result.report.timing.left if "what it takes" in left.name]
    assert [left.name for left in parts] == ([] if faster else ["two (what it takes)"])
    assert all(left.macs == 3 * 512 * 449 and left.milliseconds > 0 for left in parts)


def test_layers_that_the_table_does_not_know_cost_what_their_macs_do() -> None:
    """An attention that is split has other layers than the table's."""
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
            self.own = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x)[None]
            return self.head(self.own(x, x, x, need_weights=False)[0][0])  # type: ignore[no-any-return]

    model = Attention().double().eval()
    with torch.no_grad():
        for part in range(3):  # the last head
            model.own.in_proj_weight[16 * part + 12 : 16 * part + 16] = 0
            model.own.in_proj_bias[16 * part + 12 : 16 * part + 16] = 0
        model.own.out_proj.weight[:, 12:] = 0
    graph = ChannelGraph.trace(model, (INPUT,))
    widths = graph.widths(np.ones(graph.classes, dtype=bool))
    result = timed(model, table_of({name: layer(*width) for name, width in widths.items()}))
    assert result.report.contracted == ("own",) and not result.report.timing.left
    assert result.report.timing.after < result.report.timing.before


def test_a_table_of_another_network_batch_or_size_is_refused() -> None:
    model = chain().double().eval()
    with pytest.raises(ConfigError, match="no layer '4'"):
        compact(model, (INPUT,), table=table_of({"0": layer(64, 6), "2": layer(64, 64)}))
    with pytest.raises(ConfigError, match="up to"):
        compact(model, (INPUT,), table=chain_table(16, 1.0, width=32))
    with pytest.raises(ConfigError, match="batch of 1"):
        compact(model, (INPUT,), table=chain_table(16, 1.0).model_copy(update={"batch": 1}))
    with pytest.raises(ConfigError, match="images of"):
        compact(model, (INPUT,), table=chain_table(16, 1.0).model_copy(update={"image": (7,)}))


def test_it_is_the_same_at_every_run_and_is_printed() -> None:
    model = chain()
    kill(model[0], zero=range(4))
    first, second = (timed(model, chain_table(16, 1.5)) for _ in range(2))
    assert first.plan == second.plan and first.report.timing == second.report.timing
    text = printed(json.loads(json.dumps(first.report.to_json())))
    assert "made-up, by its latency table" in text
    assert "left in 0: 4 dead channels, 840 MACs" in text


def test_a_table_of_grids_will_do() -> None:
    """Tables of earlier versions hold milliseconds at some widths, and what lies between is drawn straight."""
    model = chain()
    kill(model[0], zero=range(32))

    def grid(outputs: int, inputs: int) -> LayerLatency:
        rows, columns = sorted({1, outputs // 2 or 1, outputs}), sorted({1, inputs // 2 or 1, inputs})
        return LayerLatency(
            outputs=tuple(rows),
            inputs=tuple(columns),
            ms=tuple(tuple(PER_MAC * row * column for column in columns) for row in rows),
        )

    grids = LatencyTable(
        target="made-up", layers={"0": grid(64, 6), "2": grid(64, 64), "4": grid(5, 64)}, rest_ms=0.5
    )
    result = timed(model, grids)
    assert result.model[0].out_features == 32
    assert math.isclose(result.report.timing.before, 0.5 + PER_MAC * (64 * 6 + 64 * 64 + 5 * 64))
