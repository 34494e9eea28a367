"""What `compactmtl latency` says of a table: its lines add up to the whole network."""

from __future__ import annotations

import pytest

from compactmtl.cli.latency import _summary
from compactmtl.cli.main import main
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Memory, Regime, StaircaseLatency


def table(memory: Memory | None) -> LatencyTable:
    each = Regime(step=1, both=1e-5)
    layers: dict[str, StaircaseLatency] = {
        name: StaircaseLatency(full=(64, 32), align=1, aligned=each, ragged=each, weights=2048.0)
        for name in ("first", "second")
    }
    return LatencyTable(
        version=4, target="cpu", image=(3, 8, 8), tasks=(), rest_ms=0.01, layers=dict(layers), memory=memory
    )


@pytest.mark.parametrize("memory", [None, Memory(held=1096, ms=1e-5)])
def test_layers_the_rest_and_memory_are_the_whole(memory: Memory | None) -> None:
    first, *lines = _summary(table(memory))
    parts = [float(line.split()[0]) for line in lines]
    whole = 2 * 64 * 32 * 1e-5 + 0.01 + (0.03 if memory else 0.0)
    assert f"{whole:.3f} ms for the whole network" in first
    assert sum(parts) == pytest.approx(whole, abs=1e-3)
    assert any("waiting for weights from memory" in line for line in lines) is (memory is not None)


@pytest.mark.parametrize(("error", "warned"), [(None, False), (0.05, False), (0.46, True)])
def test_a_table_far_off_its_own_networks_is_not_to_be_trusted(error: float | None, warned: bool) -> None:
    lines = _summary(table(None).model_copy(update={"error": error}))
    assert any(line.startswith("warning: ") and "--again" in line for line in lines) is warned


@pytest.mark.parametrize("words", [["--from", "results.json"], ["x:y", "--kit", "kit.zip"]])
def test_nothing_is_measured_again_elsewhere(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", *words, "--again"]) == 2
    assert "leave" in capsys.readouterr().err
