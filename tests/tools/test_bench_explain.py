"""The bench of explanations makes networks odd where it says, and continues where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.errors import ConfigError
from compactmtl.verify.profile import Options
from compactmtl.verify.result import Explanation, Part
from tools import bench_explain as bench

INPUT = (torch.zeros(1, 3, 16, 16),)
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


@pytest.mark.slow
def test_parts_and_what_they_leave_are_the_gap_of_a_real_runtime() -> None:
    """How much they leave is the machine's; that nothing is lost is not."""
    dense = network()
    found = bench.explained(dense, bench.pruned(dense, INPUT, "odd"), INPUT, "onnxruntime-cpu", QUICK)
    assert found.macs < found.macs_against
    total = sum(part.milliseconds for part in found.parts) + found.remainder
    assert total == pytest.approx(found.gap, abs=1e-6)
