"""What kit.py does on a device, with models that are numpy functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compactmtl.export.kit.files import Manifest, read_results
from compactmtl.export.kit.on_device import MANIFEST, REFERENCES, digest, file_sha256, main
from tests.support.kits import Arrays, NumpyRuntime, double, write_numpy_kit


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_numpy_kit(tmp_path / "kit")


@pytest.fixture(autouse=True)
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi and its like are not asked: a test depends on no machine."""
    monkeypatch.setattr("compactmtl.export.kit.condition.shutil.which", lambda name: None)


def run(kit: Path, *words: str, kind: type[NumpyRuntime] = NumpyRuntime) -> int:
    return main(kind, kit, [*words, "--out", str(kit.parent / "results.json")])


def results_of(kit: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((kit.parent / "results.json").read_text())
    return content


def test_results_hold_what_was_measured(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kit, "--name", "a board") == 0
    results = results_of(kit)
    assert results["name"] == "a board"
    assert results["kit"] == file_sha256(kit / MANIFEST)
    assert results["files"] == json.loads((kit / MANIFEST).read_text())["files"]
    assert {name: len(times) for name, times in results["latency"]["samples_ms"].items()} == {
        "dense": 4,
        "compact": 4,
    }
    assert results["parity"]["samples"] == 6
    assert {name: one["max_relative"] for name, one in results["parity"]["outputs"].items()} == {
        "value": 0.0,
        "classes": 0.0,
    }
    assert len(results["states"]) == 3  # before, half way, after
    said = capsys.readouterr().out
    assert "parity of value: 0.0e+00 of the range, within 0.0001" in said
    assert "times as fast as dense" in said
    assert all(model.closed for model in NumpyRuntime.opened)


def test_results_are_those_that_collect_reads(kit: Path) -> None:
    assert run(kit, "--repeats", "2") == 0
    results = read_results(kit.parent / "results.json")
    assert results.digest == digest(results_of(kit))
    assert len(results.latency.samples_ms["dense"]) == 2
    Manifest.model_validate_json((kit / MANIFEST).read_text())


def test_packed_images_run_in_the_models_own_batch(kit: Path) -> None:
    assert run(kit) == 0
    images = results_of(kit)["images"]
    file = kit.parent / images["file"]
    assert (images["count"], images["sha256"]) == (3, file_sha256(file))
    with np.load(kit / "images.npz") as packed, np.load(file) as answers:
        expected = double({"image": packed["image"]})
        assert {name: answers[name].tolist() for name in answers.files} == {
            name: array.tolist() for name, array in expected.items()
        }
    assert set(NumpyRuntime.opened[1].batches) == {2}  # the last, short batch was filled up


@pytest.mark.parametrize("name", ["compact", REFERENCES])
def test_a_file_that_was_changed_is_refused(name: str, kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit / name).write_bytes(b"another")
    assert run(kit) == 2
    assert f"{kit / name} is not the file that was exported" in capsys.readouterr().err
    assert not (kit.parent / "results.json").exists()


def test_a_file_that_is_missing_is_named(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit / "dense").unlink()
    assert run(kit) == 2
    said = capsys.readouterr().err
    assert f"{kit / 'dense'} can't be read" in said
    assert "copy the whole kit again" in said


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}'])
def test_a_manifest_that_is_none_is_refused(
    content: str, kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit / MANIFEST).write_text(content)
    assert run(kit) == 2
    assert str(kit / MANIFEST) in capsys.readouterr().err


def test_all_that_is_missing_is_named_at_once(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bare(NumpyRuntime):
        lacks = (("no driver", "a GPU"), ("no runtime", "pip install it"))

    assert run(kit, kind=Bare) == 3
    said = capsys.readouterr().err
    assert "no driver; no runtime" in said
    assert "needed: a GPU; pip install it" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {"classes": found["classes"], "value": found["value"]}, "outputs are"),
        (lambda found: {**found, "value": found["value"][:, None]}, "'value' is float32 of shape"),
        (lambda found: {**found, "value": found["value"].astype(np.float64)}, "'value' is float64"),
    ],
)
def test_outputs_that_cannot_be_compared_fail(
    change: Any, message: str, kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(NumpyRuntime):
        @staticmethod
        def function(arrays: Arrays) -> Arrays:
            found: Arrays = change(double(arrays))
            return found

    assert run(kit, kind=Wrong) == 4
    assert message in capsys.readouterr().err
    assert all(model.closed for model in Wrong.opened)


def test_values_that_are_no_numbers_are_counted(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Overflows(NumpyRuntime):
        @staticmethod
        def function(arrays: Arrays) -> Arrays:
            found = double(arrays)
            found["value"][0] = np.inf
            return found

    assert run(kit, kind=Overflows) == 0
    parity = results_of(kit)["parity"]
    assert parity["not_finite"] == {"value": 3}  # one in each case
    assert set(parity["outputs"]) == {"classes"}
    assert "parity of value: 3 values are NaN or infinite" in capsys.readouterr().out


def test_a_difference_beyond_the_tolerance_is_told(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Off(NumpyRuntime):
        @staticmethod
        def function(arrays: Arrays) -> Arrays:
            found = double(arrays)
            return {**found, "value": found["value"] + np.float32(0.1)}

    assert run(kit, kind=Off) == 0
    assert "BEYOND 0.0001" in capsys.readouterr().out


def test_wrong_numbers_on_the_command_line_are_refused(kit: Path) -> None:
    assert run(kit, "--repeats", "-1") == 2


def test_the_digest_is_of_every_value(kit: Path) -> None:
    assert run(kit) == 0
    results = results_of(kit)
    changed = json.loads(json.dumps(results))
    changed["latency"]["samples_ms"]["compact"][0] /= 2
    assert digest(changed) != results["digest"]
    reordered = dict(reversed(results.items()))
    assert digest(reordered) == results["digest"]


def test_a_latency_table_takes_a_kit_of_its_own(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(kit, "--table") == 2
    said = capsys.readouterr().err
    assert "compactmtl latency RUN --target NAME --kit table-kit.zip" in said and "whole models" in said
