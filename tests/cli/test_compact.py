"""`compact` with a latency table, from a file or measured, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import compactmtl.latency
from compactmtl.cli.main import main
from compactmtl.graph import ChannelGraph
from compactmtl.runs import Run
from compactmtl.runs.checkpoint import load_summary, save_best
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from tests.support.real_runs import write_run


def _run(folder: Path) -> Run:
    """A run of whose residual blocks the first filter is zero."""
    run = write_run(folder)
    best = run.path / "checkpoints" / "best"
    state = load_file(best / "weights.safetensors")
    for name, value in state.items():
        if name.endswith((".conv1.weight", ".bn1.weight", ".bn1.bias")) and ".layer" in name:
            value[0] = 0
    save_best(best, state, load_summary(best))
    return run


def _table(run: Run, ragged: float, batch: int = 1) -> LatencyTable:
    """A table of a kernel that is `ragged` times as slow where channels are no multiple of 8."""
    image = run.example_inputs(batch)
    graph = ChannelGraph.trace(run.load_plain(), image)
    layers = {
        name: StaircaseLatency(
            full=width,
            align=8,
            aligned=Regime(step=1, outputs=1e-4, both=1e-6),
            ragged=Regime(step=1, outputs=1e-4 * ragged, both=1e-6 * ragged),
        )
        for name, width in graph.widths(np.ones(graph.classes, dtype=bool)).items()
    }
    return LatencyTable(
        version=2, target="a board", layers=layers, batch=batch, image=tuple(image[0].shape[1:]), tasks=()
    )


def _surgery(run: Run) -> Any:
    return json.loads((run.compact_folder / "surgery.json").read_text())


@pytest.mark.slow
def test_a_table_from_a_file_says_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = _run(tmp_path / "run"), tmp_path / "table.json"
    _table(run, 4.0).save(file)
    assert main(["compact", str(run.path), "--align", "1"]) == 0
    removed = _surgery(run)
    assert removed["timing"] is None and "latency table" not in capsys.readouterr().out
    assert main(["compact", str(run.path), "--align", "1", "--table", str(file)]) == 0
    printed, left = capsys.readouterr().out, _surgery(run)
    assert "a board, by its latency table: " in printed and "left in " in printed
    assert left["timing"]["left"] and left["macs"]["after"] > removed["macs"]["after"]
    assert left["timing"]["after"] < left["timing"]["all_removed"]
    image = run.example_inputs()
    with torch.no_grad():
        expected, found = run.load_plain()(*image), run.load_compact()(*image)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4 * float(value.abs().max()))


@pytest.mark.slow
def test_a_table_is_measured_for_the_run_on_the_target_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path / "run")
    asked: list[Any] = []

    def measured(model: Any, inputs: Any, target: Any, name: str, **settings: Any) -> LatencyTable:
        asked.append((name, target.backend, tuple(inputs[0].shape)))
        return _table(run, 1.0)

    monkeypatch.setattr(compactmtl.latency, "latency_table", measured)
    assert main(["compact", str(run.path), "--align", "1", "--latency", "onnxruntime-cpu"]) == 0
    assert asked == [("onnxruntime-cpu", "onnxruntime", (1, 3, 16, 24))]
    assert "by its latency table" in capsys.readouterr().out and not _surgery(run)["timing"]["left"]


@pytest.mark.slow
def test_a_table_of_something_else_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = _run(tmp_path / "run"), tmp_path / "table.json"
    _table(run, 1.0).model_copy(update={"image": (3, 8, 8)}).save(file)
    assert main(["compact", str(run.path), "--table", str(file)]) == 2
    assert "measured at images of (3, 8, 8)" in capsys.readouterr().err
    _table(run, 1.0).model_copy(update={"precision": "int8"}).save(file)
    assert main(["compact", str(run.path), "--table", str(file), "--latency", "onnxruntime-cpu"]) == 2
    assert "precision int8" in capsys.readouterr().err
    assert main(["compact", str(run.path), "--table", str(tmp_path / "none.json")]) == 2
    assert "no such latency table" in capsys.readouterr().err
    assert not run.has_compact


@pytest.mark.slow
def test_rows_may_be_left_apart(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    assert main(["compact", str(run.path), "--no-join"]) == 0
    plan = json.loads((run.compact_folder / "plan.json").read_text())
    assert plan["joins"] == [] and plan["identities"] == []
