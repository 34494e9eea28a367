"""An exported run is timed again: its verification changes, its bundle and its accuracy do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compactmtl.backends import load_target
from compactmtl.cli.main import main
from compactmtl.errors import GATE, OK, USAGE, ArtifactError
from compactmtl.export import Bundle, export_run
from compactmtl.export import remeasure as module
from compactmtl.export.remeasure import remeasure_run
from compactmtl.runs import Run
from compactmtl.verify.result import LatencyResult, Measured

TARGET = "backend: onnxruntime\nlatency: {repeats: 3, warmup: 1}\naccuracy: {samples: 3}\nparity: {tolerance: 0.1}\n"


@pytest.fixture
def exported(compacted: Run, tmp_path: Path) -> Run:
    """A copy of a run with one bundle, whose target bounds the median to an hour."""
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    (tmp_path / "mine.yaml").write_text(TARGET.replace("warmup: 1", "warmup: 1, max_ms: 3.6e+6"))
    export_run(run, "mine", load_target(tmp_path / "mine.yaml"))
    return run


def slower(run: Run, factor: float) -> tuple[LatencyResult, dict[str, Measured]]:
    """What another timing of the run's bundle might find."""
    before = Bundle.open(run.path / "export" / "mine").verification
    assert before is not None
    stats = {
        name: one.model_copy(
            update={
                "median_ms": factor * one.median_ms,
                "samples_ms": tuple(factor * ms for ms in one.samples_ms),
            }
        )
        for name, one in before.latency.stats.items()
    }
    return before.latency.model_copy(update={"stats": stats}), before.measured


@pytest.mark.slow
def test_only_latency_and_its_gates_are_new(exported: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    place = exported.path / "export" / "mine"
    before = Bundle.open(place)
    assert before.verification is not None and before.doubt == ""
    found = slower(exported, 1e9)
    monkeypatch.setattr(module, "measure_artifact", lambda *words: found)
    after = remeasure_run(exported, "mine")
    assert after.accuracy == before.verification.accuracy and after.parity == before.verification.parity
    assert after.latency == found[0] and not after.passed
    again = Bundle.open(place)
    assert again.verification == after and again.sha256 == before.sha256
    assert "over" in again.doubt


@pytest.mark.slow
def test_the_command_fails_where_a_gate_fails_now(
    exported: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(exported.path), "--update"]) == OK
    assert "latency compact" in capsys.readouterr().out
    found = slower(exported, 1e9)
    monkeypatch.setattr(module, "measure_artifact", lambda *words: found)
    assert main(["profile", str(exported.path), "--update"]) == GATE


@pytest.mark.slow
def test_a_bundle_of_another_model_is_not_timed_as_this_one(exported: Run) -> None:
    with pytest.raises(ArtifactError, match="was not exported to other"):
        remeasure_run(exported, "other")
    weights = exported.deployed_weights
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="is of another model than"):
        remeasure_run(exported, "mine")


def test_what_update_does_not_go_with_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(tmp_path), "--update"]) == USAGE
    assert "--update takes one run" in capsys.readouterr().err
    assert main(["profile", str(tmp_path), "--baseline", str(tmp_path)]) == USAGE
    assert "--baseline is for --update" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--repeats", "100"], ["--out", "there"], ["--no-layers"]])
def test_what_the_target_decides_is_not_asked_for(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(tmp_path), "--update", *words]) == USAGE
    assert f"{words[0]} has no meaning for --update" in capsys.readouterr().err
