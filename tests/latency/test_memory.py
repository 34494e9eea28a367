"""Weights that come from memory: their price is told from that of products, and only where there is one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compactmtl.backends import load_target
from compactmtl.config.sparsity import LatencyBudget, SelectiveConfig
from compactmtl.latency import Cutter, Settings, Store, latency_table
from compactmtl.latency.fit import Form, LayerPoints, Point, fit_layer
from compactmtl.latency.measure import conditions_of
from compactmtl.latency.memory import LEAST_NETWORKS, _System, find_memory, total_weights, with_fetched
from compactmtl.latency.observe import widths_of
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import VERSION, LatencyTable
from compactmtl.sparsity.layer_latency import Memory, Regime, StaircaseLatency, weights_at
from compactmtl.sparsity.staircase import family_steps
from compactmtl.sparsity.target import Target
from tests.support import made_up_runtime
from tests.support.made_up_runtime import Waiting, cost

TARGET = load_target("onnxruntime-cpu")
INPUT = (torch.zeros(1, 3, 8, 8),)
WAITING = Waiting(held=20_000, ms=4e-5)
FULL = {"a": (64, 3), "b": (128, 64), "c": (128, 128), "d": (256, 128)}
WEIGHTS = {name: 9.0 * outputs * inputs for name, (outputs, inputs) in FULL.items()}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 5, 1),
    ).eval()


def table_of(monkeypatch: pytest.MonkeyPatch, folder: Path, waiting: Waiting | None) -> LatencyTable:
    made_up_runtime.install(monkeypatch, folder / "cache", waiting=waiting)
    store = Store(conditions_of(TARGET, 1), folder / "store")
    return latency_table(
        network(), INPUT, TARGET, "onnxruntime-cpu", align=4, store=store, settings=Settings(cuts=12)
    )


def networks(memory: Memory | None, noise: float, seed: int = 0, count: int = 13) -> list[LayerPoints]:
    """Points of the layers of random networks, which take 1 µs, 0.1 ns a product and what memory costs."""
    generator = np.random.default_rng(seed)
    points: dict[str, list[Point]] = {name: [] for name in FULL}
    for index in range(count):
        alike = index < count // 3
        share = (index + 1) / (count // 3)
        widths, read = {}, 3
        for name, (outputs, _) in FULL.items():
            kept = share if alike else float(generator.uniform(1 / 8, 1))
            widths[name] = (max(round(outputs * kept), 1), read)
            read = widths[name][0]
        total = total_weights(widths, FULL, WEIGHTS)
        for name, (outputs, inputs) in widths.items():
            own = weights_at(WEIGHTS[name], FULL[name], (outputs, inputs))
            waits = 0.0 if memory is None else memory.ms * own * memory.share(total)
            ms = (1e-3 + 1e-6 * outputs * inputs + waits) * (1 + noise * float(generator.standard_normal()))
            points[name].append(Point(outputs, inputs, ms, total))
    return [LayerPoints(FULL[name], WEIGHTS[name], tuple(points[name])) for name in FULL]


@pytest.mark.parametrize("held", [60_000.0, 150_000.0, 250_000.0])
def test_what_a_cache_holds_and_what_further_weights_cost_are_found(held: float) -> None:
    found, _ = find_memory(networks(Memory(held=held, ms=5e-7), noise=0.0), align=1)
    assert found is not None
    # three places: both are found by search, and a search ends
    assert found.held == pytest.approx(held, rel=1e-3)
    assert found.ms == pytest.approx(5e-7, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_with_noise_both_are_about_right(seed: int) -> None:
    """Three quarters of the largest network's time are memory's; timings vary by 3 %."""
    found, _ = find_memory(networks(Memory(held=150_000, ms=5e-7), noise=0.03, seed=seed), align=1)
    assert found is not None
    total = sum(WEIGHTS.values())
    assert found.ms * total * found.share(total) == pytest.approx(5e-7 * (total - 150_000), rel=0.25)
    assert found.share(60_000) < 0.1 * found.share(total)


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_where_all_weights_fit_a_cache_there_is_no_price(noise: float, seed: int) -> None:
    assert find_memory(networks(None, noise, seed), align=1)[0] is None


def test_a_layer_that_is_slow_beyond_a_size_of_its_own_is_no_memory_of_the_network() -> None:
    """A knee of each layer explains it, however many weights the others have."""
    layers = [
        LayerPoints(
            one.full,
            one.weights,
            tuple(
                Point(
                    p.outputs, p.inputs, p.ms + 2e-6 * max(p.outputs * (p.inputs or 1) - knee, 0), p.network
                )
                for p in one.points
            ),
        )
        for one in networks(None, noise=0.0)
        for knee in (one.full[0] * (one.full[1] or 1) / 4,)
    ]
    assert find_memory(layers, align=1)[0] is None


def test_points_of_unknown_or_of_few_networks_have_no_price() -> None:
    dear = Memory(held=60_000, ms=5e-7)
    few = networks(dear, noise=0.0, count=LEAST_NETWORKS - 1)
    assert find_memory(few, align=1)[0] is None
    unknown = [
        LayerPoints(one.full, one.weights, tuple(Point(p.outputs, p.inputs, p.ms) for p in one.points))
        for one in networks(dear, noise=0.0)
    ]
    assert find_memory(unknown, align=1)[0] is None
    assert find_memory([], align=1)[0] is None


def test_a_layer_s_own_time_is_fitted_without_what_it_waits() -> None:
    memory = Memory(held=100_000, ms=5e-7)
    *_, last = networks(memory, noise=0.0)
    own = with_fetched(last, memory, Form())
    assert all(
        point.own == pytest.approx(1e-3 + 1e-6 * point.outputs * (point.inputs or 0)) for point in own.points
    )
    layer = fit_layer(own.points, last.full, 1, last.weights)
    assert layer.at(256, 128) == pytest.approx(1e-3 + 1e-6 * 256 * 128, rel=1e-3)
    assert layer.weights == last.weights
    assert with_fetched(last, None, Form()) == last


def test_a_wait_is_never_longer_than_the_layer() -> None:
    memory = Memory(held=0, ms=1.0)
    layer = LayerPoints((4, 4), 16.0, (Point(4, 4, 1.0, 160.0), Point(4, 4, 1.0)))
    assert [point.own for point in with_fetched(layer, memory, Form()).points] == [0.0, 1.0]


def test_the_kernel_for_other_counts_waits_at_a_price_of_its_own() -> None:
    """Half of the counts are odd, and their kernel is slow enough to wait for nothing."""
    memory = Memory(held=60_000, ms=5e-7, ragged_ms=0.0)
    found, _ = find_memory(
        [
            LayerPoints(
                one.full,
                one.weights,
                tuple(
                    Point(
                        point.outputs,
                        point.inputs,
                        1e-3
                        + (1e-6 if even else 3e-6) * point.outputs * (point.inputs or 1)
                        + memory.price(not even) * one.weights_of(point) * memory.share(point.network),
                        point.network,
                    )
                    for point in one.points
                    for even in (point.inputs == one.full[1] or (point.inputs or 0) % 4 == 0,)
                ),
            )
            for one in networks(None, noise=0.0, count=24)
        ],
        align=4,
    )
    assert found is not None
    assert found.ms == pytest.approx(5e-7, rel=0.1)
    assert found.ragged_ms is not None and found.ragged_ms < 0.1 * found.ms
    assert found.scaled(2.0).price(ragged=False) == 2 * found.ms
    assert Memory(held=1.0, ms=3.0).price(ragged=True) == 3.0  # of a table of version 4


@pytest.mark.parametrize("odd", [False, True])
def test_a_kernel_that_nothing_was_timed_in_has_the_price_of_the_other(odd: bool) -> None:
    """Or weights would come from memory for nothing there, and a choice would seek its counts."""
    layers = networks(Memory(held=60_000, ms=5e-7), noise=0.0)
    form = Form(align=1, inputs_align=1)
    totals = np.unique([point.network for layer in layers for point in layer.points])
    system = _System.of(layers, dict.fromkeys(layers, form), totals)
    system = replace(
        system, blocks=tuple(replace(one, ragged=np.full(len(one.ms), odd)) for one in system.blocks)
    )
    found = system.memory(60_000)
    assert found.price(ragged=True) == found.price(ragged=False) == pytest.approx(5e-7, rel=1e-3)


def test_repeated_points_change_no_price() -> None:
    """However often layers were timed, the equations are as many as the unknowns at most."""
    layers = networks(Memory(held=60_000, ms=5e-7), noise=0.03)
    often = [replace(one, points=one.points * 5) for one in layers]
    form, prices = Form(), []
    for some in (layers, often):
        totals = np.unique([point.network for layer in some for point in layer.points])
        prices.append(_System.of(some, dict.fromkeys(some, form), totals).prices(60_000)[0])
    assert prices[1] == pytest.approx(prices[0], rel=1e-4)


@pytest.mark.parametrize(
    ("full", "width", "expected"),
    [
        ((64, 32), (32, 16), 25.0),
        ((64, None), (16, None), 25.0),
        ((64, 32), (0, 0), 0.0),
        ((64, 32), (64, 32), 100.0),
    ],
)
def test_weights_fall_with_both_widths(
    full: tuple[int, int | None], width: tuple[int, int | None], expected: float
) -> None:
    assert weights_at(100.0, full, width) == expected


@pytest.mark.slow
def test_a_table_foresees_networks_of_all_sizes_where_weights_come_from_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = table_of(monkeypatch, tmp_path, WAITING)
    assert table.memory is not None and table.version == VERSION
    full = {name: layer.full for name, layer in table.layers.items()}
    cutter = Cutter(network(), INPUT, 4)
    for kept in [*cutter.plan(8, seed=1), [size // 4 for size in cutter.sizes]]:
        cut = cutter.cut(kept)
        assert table.milliseconds(widths_of(cut, full)) == pytest.approx(cost(cut, WAITING), rel=5e-3)
    assert table.error is not None and table.error < 5e-3
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


@pytest.mark.slow
def test_a_table_of_a_network_that_fits_the_cache_is_as_exact_as_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = table_of(monkeypatch, tmp_path, None)
    assert table.memory is None
    assert table.error is not None and table.error < 1e-6


def test_a_budget_is_met_where_a_channel_costs_its_products_and_its_weights() -> None:
    """The marginal price of a channel has both; the last family's weights are the most by far."""
    each = Regime(step=4, both=1e-6)
    layers: dict[str, StaircaseLatency] = {
        name: StaircaseLatency(full=full, align=4, aligned=each, ragged=each, weights=weights)
        for name, full, weights in (
            ("0", (32, 3), 864),
            ("2", (64, 32), 18432),
            ("4", (64, 64), 36864),
            ("6", (5, 64), 320),
        )
    }
    memory = Memory(held=20_000, ms=1e-6)
    table = LatencyTable(
        version=4, target="mine", image=(3, 8, 8), tasks=(), layers=dict(layers), memory=memory
    )
    full = {name: layer.full for name, layer in layers.items()}
    own = sum(layer.at(*layer.full) for layer in layers.values())
    assert table.milliseconds(full) == pytest.approx(own + 1e-6 * (864 + 18432 + 36864 + 320 - 20_000))
    assert table.scaled(2.0).milliseconds(full) == pytest.approx(2 * table.milliseconds(full))
    groups = channel_groups(network(), INPUT)
    config = SelectiveConfig(latency=LatencyBudget(target="mine", reduction=0.8), min_channels=1)
    aim = Target(groups, config, family_steps(groups, table, 1), "sparsity.selective", table)
    costs = aim.channel_costs(groups.whole())
    cheap = Target(
        groups,
        SelectiveConfig(latency=LatencyBudget(target="mine", reduction=0.5), min_channels=1),
        4,
        "sparsity.selective",
        table.model_copy(update={"memory": None}),
    ).channel_costs(groups.whole())
    assert all(dear > own for dear, own in zip(costs, cheap, strict=True))
    keep = [~flags for flags in aim.by_magnitude()]
    assert aim.cost(keep) <= 0.2 * aim.total
    assert aim.cost(keep) >= 0.15 * aim.total
    assert math.isclose(
        aim.cost(keep), table.milliseconds(groups.removal.widths(keep)) if groups.removal else 0.0
    )


def test_a_grid_has_no_weights_to_price() -> None:
    with pytest.raises(ValidationError, match="knows the weights of all layers"):
        LatencyTable.model_validate(
            {
                "version": 4,
                "target": "mine",
                "image": [3, 8, 8],
                "tasks": [],
                "layers": {"0": {"outputs": [4], "inputs": [4], "ms": [[1.0]]}},
                "memory": {"held": 1.0, "ms": 1.0},
            }
        )
