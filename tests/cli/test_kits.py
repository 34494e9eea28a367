"""`export --kit` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.errors import OK, USAGE
from compactmtl.export.kit.on_device import IMAGES, MANIFEST, SCRIPT
from compactmtl.train import Run
from tests.support.real_runs import write_run

FAST = "\nlatency: {warmup: 1, repeats: 3}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("runs") / "scenes")


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(made.path, tmp_path / "run"))


def target(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kit-images", "3"], "none is asked for"),
        (["--kit", "--kit-images", "0"], "packs nothing"),
        (["--target", "onnxruntime-cpu", "openvino", "--kit-out", "kit"], "one place for the kits of"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    words: list[str], message: str, made: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = words if "--target" in words else ["--target", "onnxruntime-cpu", *words]
    assert main(["export", str(made.path), *chosen]) == USAGE
    assert message in capsys.readouterr().err
    assert not (made.path / "export").exists()


@pytest.mark.slow  # exports a model
def test_a_kit_goes_beside_the_runs_bundles_by_default(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = target(tmp_path, "here", "backend: onnxruntime" + FAST)
    assert main(["export", str(run.path), "--target", chosen, "--kit", "--kit-images", "99"]) == OK
    said = capsys.readouterr()
    kit = run.path / "kits" / "here"
    assert f"kit: {kit} (" in said.out and "5 images of the val split" in said.out
    assert f"python {SCRIPT}" in said.out and "compactmtl collect" in said.out
    assert "the val split has 5 images; all are packed" in said.err
    assert {SCRIPT, MANIFEST, IMAGES} < {path.name for path in kit.iterdir()}
    assert len(list((run.path / "export" / "here" / "devices").glob("kit-*.json"))) == 1


@pytest.mark.slow  # exports models
def test_a_target_that_cannot_run_here_is_prepared_for_its_kit(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = target(tmp_path, "orin", "backend: tensorrt\nprecision: fp16" + FAST)
    kit = tmp_path / "kit"
    words = ["export", str(run.path), "--target", chosen, "--kit-out", str(kit)]
    assert main(words) == OK  # with --prepare alone it is 3: here another machine is meant to run it
    assert "not run here" in capsys.readouterr().out
    manifest = json.loads((kit / MANIFEST).read_text())
    assert {name: one["precision"] for name, one in manifest["models"].items()} == {
        "model": "fp16",
        "model fp32": "fp32",
    }
    assert manifest["runtime"]["modules"] == ["tensorrt"]
    assert manifest["reference"] == "model"
