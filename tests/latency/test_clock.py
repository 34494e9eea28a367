"""Milliseconds of what a choice leaves, beside the dense network: by ratio or absolute, once for the same widths."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.backends import load_target
from compactmtl.config.sparsity import LatencyBudget
from compactmtl.latency import PairedClock, Store
from compactmtl.latency import clock as clock_module
from compactmtl.latency.clock import TRIES
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency

INPUT = (torch.zeros(1, 3, 8, 8),)
TARGET = load_target("onnxruntime-cpu")
Timing = tuple[float, float, float]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def table() -> LatencyTable:
    each = Regime(step=1, outputs=1e-3)
    layers = {
        name: StaircaseLatency(full=full, align=1, aligned=each, ragged=each)
        for name, full in {"0": (8, 3), "2": (4, 8)}.items()
    }
    return LatencyTable(version=3, target="mine", image=(3, 8, 8), tasks=(), whole_ms=2.0, layers=layers)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """What the next timings find: of the dense network, of the small one, and how much they vary; the last again."""
    found: list[Timing] = []
    monkeypatch.setattr(
        PairedClock, "_timed", lambda clock, small: found.pop(0) if len(found) > 1 else found[0]
    )
    return found


def clock(tmp_path: Path, **budget: float) -> PairedClock:
    store = Store({"device": "mine"}, tmp_path)
    return PairedClock(table(), LatencyBudget(target="mine", **budget), network(), INPUT, TARGET, store=store)


def asked(one: PairedClock, gone: int = 3) -> float | None:
    model = network()
    groups = channel_groups(model, INPUT)
    (keep,) = groups.whole()
    keep[:gone] = False
    return one([keep], groups, model)


def test_a_share_is_of_the_dense_network_in_the_same_rounds(tmp_path: Path, timings: list[Timing]) -> None:
    """The machine is half as fast as when the table was made."""
    timings.append((4.0, 3.0, 0.0))
    assert asked(clock(tmp_path, reduction=0.5)) == pytest.approx(1.5)


def test_milliseconds_are_as_they_are(tmp_path: Path, timings: list[Timing]) -> None:
    timings.append((4.0, 3.0, 0.0))
    assert asked(clock(tmp_path, ms=1.0)) == pytest.approx(3.0)


def test_networks_of_the_same_widths_are_timed_once(tmp_path: Path, timings: list[Timing]) -> None:
    """A resumed run chooses as it would have: also another process reads what was measured."""
    timings += [(4.0, 3.0, 0.0), (4.0, 1.0, 0.0), (4.0, 0.5, 0.0)]
    assert [asked(clock(tmp_path, ms=1.0), gone) for gone in (3, 3, 5, 3)] == [3.0, 3.0, 1.0, 3.0]


def test_a_busy_machine_is_tried_again_and_said(tmp_path: Path, timings: list[Timing]) -> None:
    busy = (9.0, 9.0, 2.0)
    timings += [busy, (4.0, 3.0, 0.0)]
    assert asked(clock(tmp_path, ms=1.0)) == 3.0
    timings[:] = [busy] * (TRIES + 1)
    said: list[str] = []
    one = clock(tmp_path, ms=1.0)
    one._progress = said.append
    assert asked(one, 4) is None and len(timings) == 1
    assert "too busy" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "torch-cpu"])
def test_real_networks_are_timed(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "BUSY", math.inf)  # what is asked here also holds on a busy machine
    store = Store({"device": target}, tmp_path)
    budget = LatencyBudget(target=target, ms=1.0)
    one = PairedClock(table(), budget, network(), INPUT, load_target(target), store=store)
    found = asked(one)
    assert found is not None and 0 < found < 1e3
    monkeypatch.setattr(PairedClock, "_timed", lambda clock, small: pytest.fail("it was timed twice"))
    assert asked(one) == found
