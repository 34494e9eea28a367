"""Latency: order of the rounds, statistics, and what is recorded beside them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.backends import get_backend
from compactmtl.backends.base import Description
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError
from compactmtl.verify import measure_latency
from compactmtl.verify.latency import latency_stats, undisturbed
from compactmtl.verify.result import LatencyStats
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx


class Clock:
    """A clock that moves only when a task says how long it took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)

    def spend(self, milliseconds: float) -> None:
        self.now += round(milliseconds * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.slow
def test_rounds_are_interleaved_and_their_order_rotates() -> None:
    calls: list[str] = []
    runnables = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    measure_latency(runnables, warmup=1, repeats=4, settle=0)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"


@pytest.mark.slow
def test_a_model_runs_unclocked_before_it_is_clocked_beside_others(clock: Clock) -> None:
    calls: list[str] = []

    def model(name: str) -> Callable[[], None]:
        """Takes 5 ms after another model, 1 ms after itself."""

        def run() -> None:
            clock.spend(1.0 if calls[-1:] == [name] else 5.0)
            calls.append(name)

        return run

    found = measure_latency({"a": model("a"), "b": model("b")}, warmup=0, repeats=2, settle=1)
    assert "".join(calls) == "aabb" + "bbaa"
    assert all(stats.samples_ms == (1.0, 1.0) for stats in found.stats.values())
    assert found.settle == 1
    calls.clear()
    assert measure_latency({"a": model("a")}, warmup=0, repeats=2).settle == 0  # nothing runs in between
    assert "".join(calls) == "aa"


@pytest.mark.slow
def test_statistics_are_of_all_samples(clock: Clock) -> None:
    times = iter([5.0, 1.0, 2.0, 3.0, 100.0])  # the first is the warm-up; the outlier stays
    found = measure_latency({"m": lambda: clock.spend(next(times))}, warmup=1, repeats=4)
    stats = found.stats["m"]
    assert stats.samples_ms == (1.0, 2.0, 3.0, 100.0)
    assert (stats.min_ms, stats.median_ms) == (1.0, 2.5)
    assert stats.p90_ms == pytest.approx(np.percentile([1, 2, 3, 100], 90))
    assert stats.p99_ms == pytest.approx(np.percentile([1, 2, 3, 100], 99))
    first, third = np.percentile([1, 2, 3, 100], [25, 75])
    assert stats.variation == pytest.approx((third - first) / 2.5)
    assert found.warmup == 1


@pytest.mark.slow
def test_speedups_are_ratios_to_the_reference(clock: Clock) -> None:
    # The machine slows down threefold half-way: medians of the pairs don't see it.
    slow = iter([1.0, 1.0, 3.0, 3.0, 3.0] * 2)
    fast = iter([0.25, 0.25, 0.75, 0.75, 0.75] * 2)
    runnables = {"fast": lambda: clock.spend(next(fast)), "slow": lambda: clock.spend(next(slow))}
    found = measure_latency(runnables, warmup=0, repeats=5, settle=1, reference="slow")
    assert found.reference == "slow"
    assert found.speedup == {"fast": pytest.approx(4), "slow": 1.0}
    assert found.paired_speedup == {"fast": pytest.approx(4), "slow": 1.0}


@pytest.mark.slow
def test_garbage_collection_rests_while_the_clock_runs_and_comes_back() -> None:
    seen: list[bool] = []

    def fails_at_last() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise RuntimeError("broken")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        measure_latency({"m": fails_at_last}, warmup=0, repeats=5)
    assert seen == [False, False, False]
    assert gc.isenabled()


@pytest.mark.slow
def test_a_model_that_is_slower_measures_slower() -> None:
    def wait(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    found = measure_latency({"slow": lambda: wait(4e-3), "fast": lambda: wait(1e-3)}, warmup=1, repeats=25)
    assert found.stats["slow"].min_ms >= 4
    assert found.stats["fast"].min_ms >= 1
    # A shared machine can stretch most rounds, but hardly each of 25.
    assert found.stats["fast"].min_ms < found.stats["slow"].min_ms


@pytest.mark.slow
def test_runner_and_module_are_measured_side_by_side(tmp_path: Path) -> None:
    module = TwoHeads().train()
    path = write_onnx(tmp_path / "m.onnx", module)
    with get_backend("onnxruntime").open(path, Target(backend="onnxruntime")) as runner:
        found = measure_latency({"torch": module, "onnx": runner}, torch.randn(5, WIDTH), warmup=1, repeats=3)
    assert module.training
    onnx, live = found.stats["onnx"], found.stats["torch"]
    assert (onnx.backend, onnx.provider, onnx.threads) == ("onnxruntime", "CPUExecutionProvider", 1)
    assert (live.backend, live.precision, live.threads) == ("torch", "fp32", torch.get_num_threads())
    assert onnx.batch == live.batch == 5
    assert len(onnx.samples_ms) == 3


@pytest.mark.slow
def test_modules_run_without_gradients_in_eval_mode() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_grad_enabled(), self.training))
            return x

    measure_latency({"m": Spy()}, torch.zeros(1), warmup=0, repeats=1)
    assert seen == [(False, False)]


@pytest.mark.slow
def test_callables_get_the_inputs() -> None:
    seen: list[tuple[object, ...]] = []
    a, b = torch.zeros(2), torch.ones(2)
    measure_latency({"m": lambda *inputs: seen.append(inputs)}, (a, b), warmup=0, repeats=1)
    assert seen[0][0] is a
    assert seen[0][1] is b


@pytest.mark.parametrize(
    ("runnables", "options", "message"),
    [
        ({}, {}, "no model"),
        ({"a": print}, {"reference": "b"}, "reference 'b'"),
        ({"a": print}, {"repeats": 0}, "repeats >= 1"),
        ({"a": print}, {"settle": -1}, "settle >= 0"),
        ({"a": nn.Identity()}, {}, "without inputs"),
    ],
)
def test_what_cannot_be_measured_is_a_config_error(
    runnables: dict[str, object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_latency(runnables, **options)  # type: ignore[arg-type]


def disturbed_stats(wall: list[float], process: list[float], threads: int | None = 1) -> LatencyStats:
    where = Description("b", "1", "p", "d", "fp32", threads)
    return latency_stats("it", wall, process, 1, where, True)


def test_idle_cores_are_timed_by_the_wall() -> None:
    idle = disturbed_stats([1.0] * 10, [1.0] * 10)
    assert undisturbed(idle) == [(1.0, 0.0)]


def test_other_programs_do_not_stretch_a_thread_s_own_time() -> None:
    """Of ten runs two were alone on their core; one model that is disturbed makes both be told by that."""
    busy = disturbed_stats([5.0] * 10, [1.0, 1.0, *[1.6] * 8])
    idle = disturbed_stats([1.0] * 10, [0.9] * 10)
    (ms, spread), (other, _) = undisturbed(busy, idle)
    assert ms == pytest.approx(1.0) and spread == pytest.approx(0.6) and other == pytest.approx(0.9)


@pytest.mark.parametrize("threads", [None, 4])
def test_of_several_threads_the_wall_alone_tells(threads: int | None) -> None:
    busy = disturbed_stats([5.0] * 10, [1.0] * 10, threads)
    assert undisturbed(busy) == [(5.0, 0.0)]
