"""`export`, `predict` and `doctor` as a user calls them."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.backends.base import Availability
from compactmtl.backends.tensorrt.entry import TensorRTBackend
from compactmtl.cli.export import _available, latency_lines
from compactmtl.cli.main import main
from compactmtl.cli.predict import picture_names
from compactmtl.errors import GATE, MISSING, OK, USAGE, MissingDependencyError
from compactmtl.export import Bundle
from compactmtl.train import Run
from compactmtl.verify import (
    AccuracyResult,
    LatencyResult,
    OutputParity,
    ParityResult,
    Verification,
)
from compactmtl.verify.parity import ParityError
from tests.support.real_runs import SCENES, write_run
from tests.support.synthetic_verification import FLOAT, SLOW_INT8, timed

FACES = """
data: {name: utkface, root: ROOT, size: [16, 16], batch_size: 4}
tasks:
  age: {kind: regression}
  gender: {kind: classification}
model: {encoder: {name: test_resnet}}
"""
TARGET = """
backend: onnxruntime
latency: {warmup: 1, repeats: 3}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("runs") / "scenes")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on twenty colored squares with UTKFace's names."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{20 + i}_{i % 2}_{i % 5}_2017010{i:07d}.jpg.chip.jpg")
    return write_run(tmp_path_factory.mktemp("runs") / "faces", FACES.replace("ROOT", str(root)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predict_draws_maps_and_keeps_their_figures(scenes: Run, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert main(["predict", str(scenes.path), str(image), "--out", str(out)]) == OK
    with Image.open(out / "photo.png") as picture:
        assert picture.width > 3 * 24  # input, segmentation and depth side by side, enlarged
        assert len(set(picture.get_flattened_data())) > 50
    values = json.loads((out / "predictions.json").read_text())[str(image)]["tasks"]
    assert sum(values["segmentation"]["pixel_shares"].values()) == pytest.approx(1)
    assert 0 < values["depth"]["min"] <= values["depth"]["median"] <= values["depth"]["max"]
    assert values["depth"]["unit"] == "m"


def test_predict_without_a_folder_prints_and_writes_nothing(
    scenes: Run,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert main(["predict", str(scenes.path), str(image)]) == OK
    said = capsys.readouterr()
    assert "segmentation " in said.out
    assert "%" in said.out
    assert re.search(r"depth [\d.]+ m to [\d.]+ m, median", said.out)
    assert "--out DIR" in said.err
    assert list(work.iterdir()) == []


def test_predict_tells_single_values_in_words(
    faces: Run, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(faces.path), str(image), "--out", str(tmp_path)]) == OK
    values = json.loads((tmp_path / "predictions.json").read_text())[str(image)]["tasks"]
    assert values["age"]["unit"] == "years"
    shares = values["gender"]["probabilities"]
    assert sum(shares.values()) == pytest.approx(1)
    assert values["gender"]["class"] == max(shares, key=shares.get)
    assert f"gender {values['gender']['class']} (" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "message"), [(b"hello", "not a whole image"), (None, "no such file")])
def test_predict_names_an_image_that_is_none(
    content: bytes | None, message: str, scenes: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    assert main(["predict", str(scenes.path), str(path), "--out", str(tmp_path / "out")]) == USAGE
    said = capsys.readouterr().err
    assert f"{path}: {message}" in said
    assert "Traceback" not in said


def test_pictures_of_images_with_one_name_are_numbered() -> None:
    paths = [Path("a/x.jpg"), Path("b/x.png"), Path("x-2.jpg"), Path("c/x.jpg")]
    names = picture_names(paths)
    assert names[:2] == ["x.png", "x-2.png"]
    assert len(set(names)) == 4


@pytest.mark.parametrize("verb", ["export", "predict"])
def test_folder_that_is_no_run(
    verb: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"export": [], "predict": [str(image)]}[verb]
    assert main([verb, str(tmp_path), *words]) == USAGE
    assert str(tmp_path) in capsys.readouterr().err


def test_two_targets_of_one_name_are_refused(
    scenes: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onnxruntime-cpu.yaml").write_text(TARGET)
    targets = ["onnxruntime-cpu", str(tmp_path / "onnxruntime-cpu.yaml")]
    assert main(["export", str(scenes.path), "--target", *targets]) == USAGE
    assert "share a folder" in capsys.readouterr().err


def test_export_without_the_backend_is_missing(
    scenes: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(scenes.path), "--target", "onnxruntime-cpu"]) == MISSING
    assert "compactmtl[cpu]" in capsys.readouterr().err
    assert not (scenes.path / "export").exists()


def test_a_busy_machine_is_told_with_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timed(FLOAT)
    monkeypatch.setattr("compactmtl.backends.machine.cpu_count", lambda: 2)
    idle, busy = (list(latency_lines(found.model_copy(update={"load_average": load}))) for load in (0.5, 4.7))
    assert idle[2].startswith("  2.0") and "× faster than dense, 2.0" in idle[2]
    assert len(idle) == 3
    assert "busy (load 4.7 on 2 processors)" in busy[3]


def test_an_int8_that_lost_time_is_called_slower() -> None:
    lines = list(latency_lines(timed(SLOW_INT8, "int8")))
    compact = lines.index(next(line for line in lines if line.startswith("latency compact:")))
    own, dense, single = lines[compact + 1 : compact + 4]
    assert "faster than dense," in own and "faster than dense fp32," in dense
    assert "slower than compact fp32," in single


def test_equal_models_are_told_to_be_equal() -> None:
    found = timed({"dense": 4.0, "compact": 4.0})
    assert "no difference beyond noise from dense" in "\n".join(latency_lines(found))


@pytest.mark.slow  # exports two models
def test_export_prints_what_it_found_and_a_failed_gate_fails_the_command(
    faces: Run, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sound.yaml").write_text(TARGET)
    (tmp_path / "tight.yaml").write_text(TARGET + "max_megabytes: 0.001\n")
    targets = [str(tmp_path / "tight.yaml"), str(tmp_path / "sound.yaml")]
    assert main(["export", str(faces.path), "--target", *targets]) == GATE
    said = capsys.readouterr()
    assert "over 0.001 MB" in said.err
    assert "Traceback" not in said.err
    assert "gates: 5 of 5 hold" in said.out
    assert Bundle.open(faces.path / "export" / "sound").doubt == ""
    tight = faces.path / "export" / "tight"
    assert main(["predict", str(tight), str(image), "--out", str(tmp_path / "out")]) == OK
    assert "warning" in capsys.readouterr().err


def test_doctor_says_what_runs_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == OK
    said = capsys.readouterr().out
    for word in ("torch", "onnxruntime, CPUExecutionProvider", "tensorrt  ", "processor", "cache"):
        assert word in said


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_doctor_tries_to_write_into_the_cache(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What permissions allow, a read-only or full disk refuses: to root above all."""

    def refuse(*words: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main(["doctor"]) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  cache ")]
    assert "not writable: /" in line
    assert os.strerror(number) in line


def test_doctor_finds_a_file_in_place_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == OK
    assert f"not writable: {tmp_path / 'file'}" in capsys.readouterr().out


def test_doctor_survives_a_missing_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compactmtl.backends import fit, versions

    real = fit.package_version
    monkeypatch.setattr(versions, "package_version", lambda name: None if name == "torch" else real(name))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == MISSING
    assert "missing: pip install compactmtl" in capsys.readouterr().out


class FakeExport:
    """Stands for the export of a run: fails where it is told to, and remembers what it was asked."""

    def __init__(self, failing: str, error: Exception) -> None:
        self.failing, self.error = failing, error
        self.asked: list[str] = []

    def __call__(self, run: Run, name: str, *rest: object, **options: object) -> Verification:
        self.asked.append(name)
        if name == self.failing:
            raise self.error
        nothing = ParityResult(outputs=(OUTPUT,), samples=1, passed=True)
        return Verification(
            target=name,
            bundle_sha256="0" * 64,
            parity=nothing,
            accuracy=AccuracyResult(samples=1, torch={}, artifact={}),
            latency=LatencyResult(reference="model", stats={}, speedup={}),
            megabytes=1.0,
            gates=(),
            passed=True,
            versions={},
            created="",
        )


OUTPUT = OutputParity(
    name="depth", shape=(1,), max_abs=0.0, max_relative=0.0, cosine=1.0, tolerance=1e-4, passed=True
)


@pytest.fixture
def sparse(tmp_path: Path) -> Run:
    return write_run(tmp_path / "a sparse run", SCENES + "sparsity: {selective: {mac_reduction: 0.5}}\n")


def test_a_sparse_run_that_was_never_compacted_is_warned_of_with_its_command(
    sparse: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compactmtl.export.run.export_run", FakeExport("", RuntimeError()))
    assert main(["export", str(sparse.path)]) == OK
    said = capsys.readouterr().err
    assert f"WARNING: {sparse.path} was trained with sparsity but not compacted" in said
    assert f"compactmtl compact '{sparse.path}'" in said


def test_a_dense_run_is_not_warned_of(
    scenes: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compactmtl.export.run.export_run", FakeExport("", RuntimeError()))
    assert main(["export", str(scenes.path)]) == OK
    assert "WARNING" not in capsys.readouterr().err


def test_the_next_command_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compactmtl.export.run.export_run", FakeExport("", RuntimeError()))
    run = write_run(tmp_path / "mi receta")
    assert main(["export", str(run.path)]) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert shlex.split(line) == ["next:", "compactmtl", "report", str(run.path)]


def test_a_run_is_no_baseline_of_itself(
    scenes: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(scenes.path)
    assert main(["export", str(scenes.path), "--baseline", str(link)]) == USAGE
    assert "the baseline is the run itself" in capsys.readouterr().err


def test_prepare_is_refused_where_every_target_can_run(
    scenes: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(scenes.path), "--prepare", "--target", "onnxruntime-cpu", "onnxruntime-cpu-int8"]
    assert main(words) == USAGE
    assert "there is nothing to prepare" in capsys.readouterr().err


def test_prepare_says_which_targets_it_leaves_to_be_verified(
    scenes: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone.yaml").write_text("backend: onnxruntime\nprovider: CUDAExecutionProvider\n")
    monkeypatch.setattr("compactmtl.export.run.export_run", FakeExport("", RuntimeError()))
    monkeypatch.setattr("compactmtl.cli.preparing.prepare_missing", lambda run, name, *rest: None)
    words = ["--target", "onnxruntime-cpu", str(tmp_path / "gone.yaml")]
    assert main(["export", "--prepare", *words, str(scenes.path)]) == OK
    assert "note: onnxruntime-cpu can run here; it is exported and verified" in capsys.readouterr().err


def test_the_data_of_a_run_may_lie_elsewhere_now(
    faces: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working folder, by a path relative to that."""
    asked: list[Run] = []
    fake = FakeExport("", RuntimeError())

    def remember(run: Run, name: str, *rest: object, **options: object) -> Verification:
        asked.append(run)
        return fake(run, name, *rest, **options)

    monkeypatch.setattr("compactmtl.export.run.export_run", remember)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "data.root=faces", str(faces.path)]) == OK
    assert asked[0].recipe.data.root == str(tmp_path / "faces")


@pytest.mark.parametrize(
    ("error", "code"), [(ParityError("NaN", "mend"), GATE), (MissingDependencyError("no", "get"), MISSING)]
)
def test_one_target_that_fails_does_not_keep_the_others(
    error: Exception,
    code: int,
    scenes: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(TARGET)
    fake = FakeExport("one", error)
    monkeypatch.setattr("compactmtl.export.run.export_run", fake)
    targets = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    assert main(["export", str(scenes.path), "--target", *targets]) == code
    assert fake.asked == ["one", "two"]
    assert "1 targets failed: one" in capsys.readouterr().err


def test_all_available_says_what_it_leaves_out(
    scenes: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeExport("", RuntimeError())
    monkeypatch.setattr("compactmtl.export.run.export_run", fake)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["export", str(scenes.path), "--target", "all-available"]) == OK
    said = capsys.readouterr().out
    assert {"onnxruntime-cpu", "onnxruntime-cpu-int8"} <= set(fake.asked)
    assert "skipped openvino: openvino can't be imported" in said
    assert "openvino" not in fake.asked
    assert main(["export", str(scenes.path), "--target", "all-available", "onnxruntime-cpu"]) == USAGE


def test_examples_are_no_part_of_all_available(monkeypatch: pytest.MonkeyPatch) -> None:
    always = Availability(available=True)
    monkeypatch.setattr(TensorRTBackend, "availability", lambda self, target: always)
    found = _available()
    assert "tensorrt-fp16" in found
    assert "jetson-orin-example" not in found
