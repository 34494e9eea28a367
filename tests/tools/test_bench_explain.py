"""The bench of explanations makes networks odd where it says, and continues where it stopped."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import Description
from compactmtl.backends.base import LayerTime
from compactmtl.errors import ConfigError
from compactmtl.export import export_onnx
from compactmtl.verify.graph_work import graph_work
from compactmtl.verify.latency import latency_result, latency_stats
from compactmtl.verify.profile import Options, Subject
from compactmtl.verify.result import Explanation, Measured, Part
from tools import bench_explain as bench

INPUT = (torch.zeros(1, 3, 16, 16),)
ARRAYS = {"image": np.zeros((1, 3, 16, 16), np.float32)}
QUICK = Options(batches=(), warmup=2, repeats=10, layer_repeats=5, memory=False, energy=False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 10, 3, padding=1),
    ).eval()


def widths(model: nn.Module) -> list[int]:
    return [one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d)]


@pytest.mark.parametrize(
    ("pair", "left"), [("odd", [9, 17, 33, 5]), ("first", [9, 32, 64, 10]), ("last", [16, 32, 64, 5])]
)
def test_channels_go_where_the_pair_says_and_odd_numbers_stay(pair: str, left: list[int]) -> None:
    dense = network()
    small = bench.pruned(dense, INPUT, pair)
    assert widths(small) == left
    assert widths(dense) == [16, 32, 64, 10]
    assert small(*INPUT).shape[1] == left[-1]


def test_tied_channels_go_once() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            kept: torch.Tensor = self.first(image)
            kept = kept + self.second(kept)
            return kept

    assert widths(bench.pruned(Residual(), INPUT, "odd")) == [7, 7]


def test_a_network_without_convolutions_cannot_be_pruned() -> None:
    with pytest.raises(ConfigError, match="no convolution"):
        bench.convolutions(nn.Linear(3, 4), "odd")


def explanation(remainder: float) -> Explanation:
    parts = [("rounding", 0.3), ("untouched", -0.1), ("call", 0.02), ("floor", 0.01)]
    return Explanation(
        name="small",
        against="dense",
        macs=100,
        macs_against=400,
        milliseconds=0.5,
        milliseconds_against=1.0,
        by_macs=0.25,
        gap=0.23 + remainder,
        parts=tuple(Part(key=key, what="", milliseconds=ms, layers={}, advice="") for key, ms in parts),
        remainder=remainder,
        profiler_us=(0.0, 0.0),
    )


@pytest.mark.parametrize(
    ("remainder", "says"), [(0.02, "| 8% |"), (0.23, "| **50%** |"), (-0.115, "| **100%** |")]
)
def test_a_line_has_the_gap_its_parts_and_what_they_leave(remainder: float, says: str) -> None:
    where = {"network": "n", "pair": "odd", "target": "t"}
    line = bench.row({**where, "explanation": explanation(remainder).model_dump(mode="json")})
    assert says in line and "| 4.00× | 2.00× |" in line and "| +0.230 |" in line
    assert "rounding +0.300, untouched -0.100, call +0.020 |" in line
    assert "no such" in bench.row({**where, "failed": "no such backend"})


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def cell(given: Any, pair: str, target: str) -> bench.Result:
        made.append(pair)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"network": "n", "pair": pair, "target": target, "failed": "busy"}

    monkeypatch.setattr(bench, "cell", cell)
    given = argparse.Namespace(pairs=["odd", "last"], targets=["t"], out=tmp_path, table=False)
    with pytest.raises(KeyboardInterrupt):
        list(bench.results(given))
    assert [one["pair"] for one in bench.results(given)] == ["odd", "last"]
    assert made == ["odd", "last", "last"]
    assert list(bench.results(argparse.Namespace(**{**vars(given), "pairs": ["first"], "table": True}))) == []


class _Closed:
    """In place of a runner: the made-up runtime needs the file alone."""

    def __enter__(self) -> _Closed:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def made_up(subjects: Mapping[str, Subject], options: Options) -> SimpleNamespace:
    """A profile by a runtime whose kernels take channels in blocks of four: 1 µs a million products of whole blocks, 2 µs a
    layer, 10 µs a call and 1 µs that is in no step.
    """
    stats, measured = {}, {}
    for name, one in subjects.items():
        plain = graph_work(one.path, ARRAYS, (), "fp32", 4)
        times = []
        for layer in plain.layers:
            whole = math.ceil(layer.outputs / 4) * math.ceil((layer.inputs or 4) / 4) * 16
            ms = 2e-3 + 1e-6 * layer.macs / layer.outputs / (layer.inputs or 1) * whole
            times.append(LayerTime(name=layer.name, operator="Conv", milliseconds=ms))
        wall = sum(step.milliseconds for step in times) + 1e-2 + 1e-3
        described = Description("made up", "1", "cpu", "a processor", "fp32", 1)
        stats[name] = latency_stats(name, [wall] * 5, [wall] * 5, 1, described, includes_transfers=True)
        work = graph_work(one.path, ARRAYS, times, "fp32", 4)
        measured[name] = Measured(megabytes=1, throughput={}, layers=tuple(times), work=work, call_ms=1e-2)
    found = latency_result(stats, "dense", warmup=0, settle=0, load_average=None)
    return SimpleNamespace(latency=found, subjects=measured)


@pytest.mark.slow
@pytest.mark.parametrize("pair", bench.PAIRS)
def test_a_runtime_of_blocks_is_explained_to_a_tenth_of_the_gap(
    pair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(model: nn.Module, inputs: Any, target: Any, path: Path) -> _Closed:
        export_onnx(model, inputs, path, input_names=["image"])
        return _Closed()

    monkeypatch.setattr(bench, "opened", opened)
    monkeypatch.setattr(bench, "profile", made_up)
    dense = network()
    found = bench.explained(dense, bench.pruned(dense, INPUT, pair), INPUT, "onnxruntime-cpu", QUICK)
    total = sum(part.milliseconds for part in found.parts)
    assert found.gap > 0
    assert total == pytest.approx(found.gap, rel=bench.BOUND)
    rounded = {layer for part in found.parts if part.key == "rounding" for layer in part.layers}
    untouched = {layer for part in found.parts if part.key == "untouched" for layer in part.layers}
    layers = [name for name, one in dense.named_modules() if isinstance(one, nn.Conv2d)]
    expected = {"odd": (layers, []), "first": (layers[:2], layers[2:]), "last": (layers[3:], layers[:3])}
    assert (rounded, untouched) == tuple(set(names) for names in expected[pair])


@pytest.mark.slow
def test_parts_and_what_they_leave_are_the_gap_of_a_real_runtime() -> None:
    """How much they leave is the machine's; that nothing is lost is not."""
    dense = network()
    found = bench.explained(dense, bench.pruned(dense, INPUT, "odd"), INPUT, "onnxruntime-cpu", QUICK)
    assert found.macs < found.macs_against
    total = sum(part.milliseconds for part in found.parts) + found.remainder
    assert total == pytest.approx(found.gap, abs=1e-6)
