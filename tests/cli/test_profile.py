"""`profile` as a user calls it, on model files that this project didn't write."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from compactmtl.cli.main import main
from compactmtl.cli.profile import unique_names
from compactmtl.errors import OK, USAGE
from tests.support.onnx_files import TwoHeads, write_onnx
from tests.support.real_runs import write_run

QUICK = ["--warmup", "1", "--repeats", "3", "--batches", "1", "2", "--no-memory"]


@pytest.mark.slow
def test_foreign_files_are_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_onnx(tmp_path / name, TwoHeads())) for name in ("a.onnx", "b.onnx")]
    out = tmp_path / "out"
    assert main(["profile", *files, *QUICK, "--out", str(out)]) == OK
    said = capsys.readouterr().out
    assert "against     a.onnx" in said
    assert "not run     memory: not asked for" in said
    found = json.loads((out / "profile.json").read_text())
    assert set(found["subjects"]) == {"a.onnx", "b.onnx"}
    times = json.loads((out / "times" / "b.onnx.json").read_text())
    assert [one["latencyMs"] for one in times] == found["latency"]["stats"]["b.onnx"]["samples_ms"]


@pytest.mark.slow  # trains and exports a model
def test_a_run_is_profiled_in_the_targets_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["profile", str(run.path), "--target", "onnxruntime-cpu-int8", *QUICK]) == OK
    said = capsys.readouterr().out
    assert ", int8" in said
    assert "at batch 2" in said  # its batch is free


@pytest.mark.slow  # quantizes
def test_a_float_file_is_brought_to_the_targets_precision_for_its_latency_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(tmp_path / "small.onnx", TwoHeads())
    before = file.read_bytes()
    out = tmp_path / "out"
    assert main(["profile", str(file), "--target", "onnxruntime-cpu-int8", *QUICK, "--out", str(out)]) == OK
    said = capsys.readouterr()
    assert ", int8" in said.out and "  note        brought to int8 with made-up inputs" in said.out
    assert "its outputs mean nothing" in said.err
    subject = json.loads((out / "profile.json").read_text())["subjects"]["small.onnx"]
    assert "made-up inputs" in subject["note"]
    assert file.read_bytes() == before


def test_a_file_of_another_precision_than_the_target_is_named_as_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(tmp_path / "small.onnx", TwoHeads())
    model = onnx.load(file)
    half = model.graph.initializer[0]
    half.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(half).astype("float16"), half.name))
    onnx.save(model, file)
    assert main(["profile", str(file), "--target", "onnxruntime-cpu-int8", *QUICK]) == USAGE
    said = capsys.readouterr().err
    assert f"{file} is a model in fp16, and target onnxruntime-cpu-int8 asks for int8" in said
    assert "choose a target whose backend" not in said


def test_a_shape_of_no_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_onnx(tmp_path / "a.onnx", TwoHeads())
    assert main(["profile", str(file), "--shape", "imgae=1x3x8x8", *QUICK]) == USAGE
    assert "no model has an input 'imgae'" in capsys.readouterr().err


@pytest.mark.slow
def test_what_changes_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_onnx(tmp_path / "a.onnx", TwoHeads())
    assert main(["profile", str(file), "data.root=/data", *QUICK]) == OK
    assert "note: data.root=/data has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.onnx"], "no such run, bundle or model file"),
        (["a.onnx", "--repeats", "0"], "at least one round must be measured"),
        (["."], "neither a run nor a bundle"),
        (["a.onnx", "a.onnx"], "named twice"),
        (["a.onnx", "--shape", "image=axb"], "expected NAME=1x3x224x224"),
        (["a.onnx", "--batch", "0"], "at least one sample"),
    ],
)
def test_what_cannot_be_profiled_is_named(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *words]) == USAGE
    assert message in capsys.readouterr().err


def test_names_are_as_long_as_it_takes() -> None:
    assert unique_names(["runs/a/model.onnx", "runs/b/model.onnx"]) == ["a/model.onnx", "b/model.onnx"]
    assert unique_names(["runs/a/model.onnx", "other.onnx"]) == ["model.onnx", "other.onnx"]
