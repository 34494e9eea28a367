"""Shrinking to milliseconds, on a made-up runtime whose kernels take channels in blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.backends import load_target
from compactmtl.errors import ConfigError, TrainingError
from compactmtl.latency import PairedClock, latency_table
from compactmtl.loops import Shrinking
from tests.loops.nets import STEPS, adam, batches, example, loss_of, two_heads
from tests.loops.nets import backward as back
from tests.support import made_up_runtime
from tests.support.made_up_runtime import cost

pytestmark = pytest.mark.slow  # seconds
TARGET = "onnxruntime-cpu"
SETTINGS: dict[str, Any] = {
    "min_channels": 2,
    "every": 2,
    "start": 0.1,
    "end": 0.6,
    "align": 4,
    "threshold": 0.5,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    return made_up_runtime.install(monkeypatch, tmp_path / "cache")


def shrinking_of(model: nn.Module, **budget: Any) -> Shrinking:
    return Shrinking(model, adam(model), example(), total_steps=STEPS, **{**SETTINGS, **budget})


def train(shrinking: Shrinking, epochs: range) -> None:
    for epoch in epochs:
        for image in batches(epoch):
            shrinking.optimizer.zero_grad()
            back(loss_of(shrinking.model(image), image))
            shrinking.optimizer.step()
            shrinking.step()


@pytest.mark.parametrize("limit", ["latency_ms", "speedup"])
def test_the_compact_network_is_within_the_budget(limit: str, calls: list[int]) -> None:
    whole = cost(two_heads())
    budget = 0.7 * whole
    model = two_heads()
    shrinking = shrinking_of(
        model, target=TARGET, **{limit: budget if limit == "latency_ms" else whole / budget}
    )
    assert calls and shrinking.table is not None and shrinking.table.target == TARGET
    train(shrinking, range(4))
    assert cost(shrinking.finish().model) <= budget * 1.001  # the table's own rounding


def test_a_resumed_loop_chooses_by_the_table_of_the_start(
    calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(first: int) -> nn.Module:
        model = two_heads()
        shrinking = shrinking_of(model, target=TARGET, speedup=1.4)
        train(shrinking, range(first))
        torch.save(
            [model.state_dict(), shrinking.optimizer.state_dict(), shrinking.state_dict()], tmp_path / "saved"
        )
        train(shrinking, range(first, 4))
        return model

    expected = whole(2)
    model = two_heads(seed=3)
    weights, optimizer, state = torch.load(tmp_path / "saved", weights_only=True)
    model.load_state_dict(weights)
    # on another machine: its cache is empty, and it takes other times
    made_up_runtime.install(monkeypatch, tmp_path / "elsewhere", factor=2.0)
    shrinking = shrinking_of(model, target=TARGET, speedup=1.4)
    assert shrinking.table is not None and shrinking.table.model_dump_json() != state["table"]
    shrinking.load_state_dict(state)
    assert shrinking.table.model_dump_json() == state["table"]
    shrinking.optimizer.load_state_dict(optimizer)
    train(shrinking, range(2, 4))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_table_of_another_device_needs_no_target(calls: list[int]) -> None:
    table = shrinking_of(two_heads(), target=TARGET, speedup=1.4).table
    assert table is not None
    calls.clear()
    shrinking = shrinking_of(two_heads(), table=table, latency_ms=0.7 * cost(two_heads()))
    assert not calls and shrinking.table is table


def test_a_table_of_a_target_without_a_name_decides_alone(
    calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """`latency_table` calls such a target by its backend, which no target's file has to be called."""
    table = latency_table(two_heads(), example(), load_target(TARGET))
    assert table.target == "onnxruntime"
    calls.clear()
    model = two_heads()
    budget = 0.7 * cost(model)
    shrinking = shrinking_of(model, table=table, latency_ms=budget)
    train(shrinking, range(4))
    assert not calls and shrinking.table is table
    assert "table of onnxruntime decides, and nothing is measured here" in capsys.readouterr().err
    assert cost(shrinking.finish().model) <= budget * 1.001


def test_a_table_of_a_target_of_another_name_is_corrected_where_it_is_named(calls: list[int]) -> None:
    table = latency_table(two_heads(), example(), load_target(TARGET))
    calls.clear()
    shrinking = shrinking_of(two_heads(), table=table, target=TARGET, latency_ms=0.7 * cost(two_heads()))
    train(shrinking, range(4))
    assert calls and shrinking.table is table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "int8"}, "precision int8, and target onnxruntime-cpu has fp32"),
        ({"backend": "openvino"}, "backend openvino, and target onnxruntime-cpu has onnxruntime"),
        ({"threads": 3}, "threads 3, and target onnxruntime-cpu has 1"),
        ({"batch": 7}, "batch 7, and target onnxruntime-cpu has 1"),
    ],
)
def test_a_table_that_is_not_of_the_target_is_refused(
    change: dict[str, Any], words: str, calls: list[int]
) -> None:
    table = latency_table(two_heads(), example(), TARGET).model_copy(update=change)
    with pytest.raises(ConfigError, match=f"the latency table is of {words}"):
        shrinking_of(two_heads(), table=table, target=TARGET, speedup=1.4)


def test_a_table_of_the_target_on_another_device_decides_alone(
    calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    table = latency_table(two_heads(), example(), TARGET).model_copy(update={"device": "another"})
    calls.clear()
    shrinking = shrinking_of(two_heads(), table=table, target=TARGET, speedup=1.4)
    assert not calls and shrinking.table is table
    assert "it is of another machine" in capsys.readouterr().err


def test_a_budget_that_no_choice_meets_in_truth_is_said_at_the_end(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes, the network takes as long as the dense one."""
    monkeypatch.setattr(PairedClock, "_timed", lambda clock, small: (1.0, 1.0, 0.0))
    model = two_heads()
    shrinking = shrinking_of(model, target=TARGET, speedup=1.4)
    train(shrinking, range(4))
    with pytest.raises(TrainingError, match=r"the budget is missed: what is left takes .* ms as measured"):
        shrinking.finish()
    assert shrinking.finish(early=True).report.mac_reduction > 0


def test_a_failed_measurement_moves_no_random_number(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_heads()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="cannot be reached"):
        shrinking_of(model, target=TARGET, latency_ms=0.001)
    assert calls and torch.equal(torch.get_rng_state(), before)


def test_a_budget_that_cannot_be_met_or_is_met(calls: list[int]) -> None:
    with pytest.raises(
        ConfigError, match=r"^latency_ms 0\.001 cannot be reached: .* ms is the least"
    ) as caught:
        shrinking_of(two_heads(), target=TARGET, latency_ms=0.001)
    assert "raise latency_ms" in caught.value.hint
    with pytest.raises(ConfigError, match=r"^latency_ms 1000: the original model takes .* nothing to remove"):
        shrinking_of(two_heads(), target=TARGET, latency_ms=1000.0)
    with pytest.raises(ConfigError, match=r"^speedup 1000 cannot be reached"):
        shrinking_of(two_heads(), target=TARGET, speedup=1000.0)
