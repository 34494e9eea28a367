"""Bars: sorted by size, folded where there are many, nothing lost."""

from __future__ import annotations

from compactmtl.backends.base import LayerTime
from compactmtl.report import bars
from compactmtl.report.read import Change, Epoch, LayerChange, Sparsity, TrainLosses
from compactmtl.verify.result import Measured


def layer(name: str, before: int, after: int) -> LayerChange:
    return LayerChange(
        name=name, type="Conv2d", before=(8, 3), after=(4, 3), macs=Change(before=before, after=after)
    )


def epoch(number: int, layers: dict[str, float]) -> Epoch:
    sparsity = Sparsity(groups_zero=0.1, layers=layers)
    train = TrainLosses(loss=1.0)
    return Epoch(epoch=number, step=number, seconds=1.0, lr=1e-3, train=train, sparsity=sparsity)


def test_layers_are_sorted_by_their_cost_and_drawn_on_one_scale() -> None:
    chart = bars.layer_costs([layer("small", 10, 5), layer("large", 40, 10), layer("none", 0, 0)])
    assert chart is not None
    assert [row.name for row in chart.rows] == ["large", "small"]
    assert [[bar.share for bar in row.bars] for row in chart.rows] == [[1.0, 0.25], [0.25, 0.125]]
    assert "50" in chart.caption and "15" in chart.caption  # sums before and after


def test_many_layers_are_folded_and_none_is_lost() -> None:
    chart = bars.layer_costs([layer(f"l{i}", 100 + i, 1) for i in range(40)])
    assert chart is not None
    assert len(chart.shown) == bars.SHOWN and chart.shown + chart.folded == chart.rows


def test_a_few_more_than_the_fold_are_shown() -> None:
    chart = bars.layer_costs([layer(f"l{i}", 100 + i, 1) for i in range(bars.SHOWN + 2)])
    assert chart is not None and not chart.folded


def test_layers_without_macs_make_no_chart() -> None:
    assert bars.layer_costs([layer("pool", 0, 0)]) is None


def test_times_are_sorted_by_the_slowest_model() -> None:
    def timed(*layers: tuple[str, float]) -> Measured:
        steps = tuple(LayerTime(name=name, operator="Conv", milliseconds=ms) for name, ms in layers)
        return Measured(megabytes=1.0, throughput={}, layers=steps)

    chart = bars.times(
        {"dense": timed(("a", 1.0), ("b", 2.0)), "compact": timed(("a", 0.5), ("c", 3.0))}, "cpu"
    )
    assert chart is not None and chart.series == ("dense", "compact")
    assert [row.name for row in chart.rows] == ["c", "b", "a"]
    assert [bar.text for bar in chart.rows[0].bars] == ["—", "3.00 ms"]
    assert bars.times({"dense": Measured(megabytes=1.0, throughput={})}, "cpu") is None


def test_the_pattern_of_zeros_has_a_row_a_layer_with_its_last_share() -> None:
    chart = bars.zero_pattern(
        [epoch(1, {"stem": 0.0, "layer1": 0.25}), epoch(2, {"stem": 0.0, "layer1": 0.75})]
    )
    assert chart is not None
    assert [(row.name, row.text) for row in chart.rows] == [("layer1", "75 %"), ("stem", "0 %")]
    assert chart.rows[0].path == "M0 100V75.0H50.00V25.0H100.00V100Z"


def test_without_layers_there_is_no_pattern() -> None:
    assert bars.zero_pattern([epoch(1, {})]) is None  # a log of before layers were written
