"""A sweep's exports are timed side by side, once for each set of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from compactmtl.cli.main import main
from compactmtl.sweep import latency as latency_module
from compactmtl.verify.latency import measure_latency

TINY = Path(__file__).parents[1] / "train" / "tiny.yaml"
SWEEP = f"""
recipe: {TINY}
baseline: plain
seeds: [0]
compact: true
targets: [onnxruntime-cpu]
overrides: [train.epochs=1, train.max_steps=2, data.holdout=0.3, data.select_on=holdout]
entries:
  plain: {{}}
  narrow: {{series: ours, overrides: ["model.encoder.options.channels=[8,8,12,16]"]}}
"""


@pytest.mark.slow
def test_they_are_in_the_table_and_measured_again_only_where_a_bundle_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mine.yaml", tmp_path / "runs"
    path.write_text(SWEEP, "utf-8")
    command = ["sweep", str(path), "--out", str(out)]
    assert main(command) in (0, 4)  # two steps do not meet every gate
    measured = json.loads((out / "latency.json").read_text())["seeds"]["0"]
    assert list(measured["latency"]["stats"]) == ["plain on onnxruntime-cpu", "narrow on onnxruntime-cpu"]
    rounds = {len(one["samples_ms"]) for one in measured["latency"]["stats"].values()}
    assert rounds == {100}  # each once a round
    text = (out / "sweep.md").read_text()
    assert "| narrow, onnxruntime-cpu |" in text and "![Δm against latency on onnxruntime-cpu]" in text
    assert "Unfinished" not in text
    assert "the best epoch on the holdout split" in text and "\n| narrow |" in text
    ElementTree.parse(out / "pareto-onnxruntime-cpu.svg")
    assert "narrow, onnxruntime-cpu" in capsys.readouterr().out

    calls: list[int] = []
    real = measure_latency
    monkeypatch.setattr(latency_module, "measure_latency", lambda *a, **k: calls.append(1) or real(*a, **k))  # type: ignore[func-returns-value]
    assert main([*command, "--table"]) == 0
    assert not calls and json.loads((out / "latency.json").read_text())["seeds"]["0"] == measured
    saved = (out / "latency.json").read_text()
    (out / "latency.json").write_text(
        saved.replace(measured["bundles"]["narrow on onnxruntime-cpu"], "0" * 64)
    )
    assert main([*command, "--table"]) == 0
    assert calls == [1]  # the bundle is not the one that was timed
    (out / "latency.json").write_text("{")
    assert main([*command, "--table", "--seeds", "0", "1"]) == 0
    assert calls == [1, 1]
    assert list(json.loads((out / "latency.json").read_text())["seeds"]) == ["0"]
    assert "**Unfinished: 2 of 4 runs.**" in (out / "sweep.md").read_text()
