"""Real kits: run with only numpy and the runtime on the path, collected, and refused where anything was changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compactmtl.artifacts.hashes import read_hashes
from compactmtl.cli.main import main
from compactmtl.config.target import AccuracyConfig, LatencyConfig, Target
from compactmtl.errors import ArtifactError, CompactError, ConfigError, DataError
from compactmtl.export import Bundle, export_run
from compactmtl.export.kit.collect import collect_results
from compactmtl.export.kit.files import read_records
from compactmtl.export.kit.on_device import IMAGES, INPUTS, MANIFEST, REFERENCES, SCRIPT, digest, file_sha256
from compactmtl.export.kit.write import write_kit
from compactmtl.train import Run
from compactmtl.verify.parity import NonFiniteError
from tests.support.real_runs import SCENES, compact_half, write_run

pytestmark = pytest.mark.slow  # exports models, and runs kits in processes of their own

FAST = LatencyConfig(batch=2, warmup=1, repeats=3)
RUNTIMES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", "openvinotelemetry")}


def isolated(folder: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """The environment of a Python that has numpy and these packages alone."""
    site = Path(np.__file__).parents[1]
    folder.mkdir()
    for name in (*packages, "numpy", "numpy.libs"):
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}


def run_isolated(kit: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", str(kit / SCRIPT), *words]
    return subprocess.run(
        command, env=environment, cwd=kit, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module", params=RUNTIMES)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with a bundle, and the kit of it that was run on "a device"."""
    root = tmp_path_factory.mktemp(request.param)
    # OpenVINO refuses the pooling of a smaller image's last stage
    run = compact_half(write_run(root / "run", SCENES.replace("[16, 24]", "[32, 48]")))
    target = Target(backend=request.param, latency=FAST, accuracy=AccuracyConfig(samples=3))
    assert export_run(run, "small", target).passed
    kit = write_kit(run, "small", root / "kit.zip", images=3)
    assert (kit.images, kit.path.stat().st_size > 1e5) == (3, True)
    with zipfile.ZipFile(kit.path) as packed:
        packed.extractall(root)
    environment = isolated(root / "site", RUNTIMES[request.param])
    probe = [sys.executable, "-S", "-c", "import numpy, torch"]
    without = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in without.stderr
    answer = run_isolated(root / "kit", environment, "--name", "a Board")
    assert answer.returncode == 0, answer.stderr
    return run, root / "kit" / "results.json"


@pytest.fixture
def fresh(measured: tuple[Run, Path], tmp_path: Path) -> tuple[Run, Path]:
    """A copy of the run and of the results, to be written to."""
    run, results = measured
    for path in results.parent.glob("results.*"):
        shutil.copy(path, tmp_path / path.name)
    copied = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    return copied, tmp_path / results.name


def edit(results: Path, change: Callable[[dict[str, Any]], Any], *, sign: bool = True) -> None:
    """Change what a results file says; with a digest of its own, as whoever edits it on purpose would."""
    content = json.loads(results.read_text())
    change(content)
    if sign:
        content["digest"] = digest(content)
    results.write_text(json.dumps(content))


def refused(run: Run, results: Path, kind: type[CompactError] = ArtifactError) -> str:
    """The reason why results are refused; nothing of them is kept."""
    with pytest.raises(kind) as caught:
        collect_results(run, results)
    assert caught.value.exit_code == (4 if kind is NonFiniteError else 2)
    assert read_records(run.path / "export" / "small") == ()
    return caught.value.message


def test_results_are_taken_in_with_the_targets_gates(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    collected = collect_results(run, results)
    record = collected.record
    assert record.passed and not collected.replaced
    assert {gate.gate for gate in record.gates} == {"types", "parity", "accuracy"}
    assert record.accuracy is not None and record.accuracy.samples == 3
    bundle = Bundle.open(run.path / "export" / "small")
    verified = bundle.verification
    assert verified is not None
    # the same runtime on the same images: the metrics that export measured
    for task, metrics in verified.accuracy.artifact.items():
        assert record.accuracy.artifact[task] == pytest.approx(metrics, rel=1e-5)
    assert record.latency.reference == "dense"
    assert {len(stats.samples_ms) for stats in record.latency.stats.values()} == {3}
    assert record.latency.stats["compact"].layers == verified.latency.stats["compact"].layers
    assert {one.name: one.passed for one in record.parity.outputs} == {"segmentation": True, "depth": True}


def test_a_record_is_kept_under_the_devices_name_and_replaced(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    first = collect_results(run, results)
    assert first.bundle == run.path / "export" / "small"
    kept = first.bundle / "devices" / "a-board.json"
    assert kept.is_file()
    hashes = read_hashes(kept.parent, "")
    assert hashes is not None and kept.name in hashes.files
    assert collect_results(run, results).replaced
    assert not collect_results(run, results, name="another").replaced
    assert [record.name for record in read_records(first.bundle)] == ["a Board", "another"]
    Bundle.open(first.bundle)  # the bundle is as sound as before


def test_a_record_that_was_exchanged_is_found(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    folder = collect_results(run, results).bundle
    kept = folder / "devices" / "a-board.json"
    kept.write_text(kept.read_text().replace('"passed": true', '"passed": false'))
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        read_records(folder)
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        collect_results(run, results, name="another")  # no new hash is given to the exchanged one


def test_an_edited_file_is_refused(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    edit(results, lambda found: found["latency"].update(batch=1), sign=False)
    assert "was changed after kit.py wrote it" in refused(run, results)


@pytest.mark.parametrize(
    ("file", "role"),
    [
        ("models/compact/model.onnx", "the model"),
        ("models/dense/model.onnx", "the model"),
        (INPUTS, "the inputs"),
        (REFERENCES, "the references"),
        (IMAGES, "the packed images"),
        (SCRIPT, "the script"),
    ],
)
def test_results_of_other_files_are_refused(file: str, role: str, fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    edit(results, lambda found: found["files"].update({file: "0" * 64}))
    assert f"{role} on the device, {file}, is another" in refused(run, results)


def test_the_kit_itself_refuses_a_changed_model_and_references(
    measured: tuple[Run, Path], tmp_path: Path
) -> None:
    _, results = measured
    for name in ("models/compact/model.onnx", REFERENCES):
        kit = Path(shutil.copytree(results.parent, tmp_path / "kit", dirs_exist_ok=True))
        (kit / name).write_bytes((kit / name).read_bytes() + b"x")
        environment = {"PYTHONPATH": str(results.parents[1] / "site"), "PATH": "/usr/bin:/bin"}
        answer = run_isolated(kit, environment)
        assert answer.returncode == 2
        assert f"{kit / name} is not the file that was exported" in answer.stderr


def test_results_of_a_kit_that_was_made_fit_again_are_refused(fresh: tuple[Run, Path]) -> None:
    """Whoever changes the references and the manifest with them has another kit, which the bundle doesn't know."""
    run, results = fresh
    edit(results, lambda found: found.update(kit="1" * 64))
    assert "no bundle of this run knows a kit 111111111111" in refused(run, results)


def test_results_of_another_run_are_refused(fresh: tuple[Run, Path], trained: Run) -> None:
    _, results = fresh
    with pytest.raises(ArtifactError, match="is not of a kit of"):
        collect_results(trained, results)


def test_results_of_a_former_export_are_refused(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    bundle = Bundle.open(run.path / "export" / "small")
    export_run(run, "small", bundle.info.target)
    assert "no bundle of this run knows" in refused(run, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["latency"]["samples_ms"]["compact"].pop(), "unequal numbers of rounds"),
        (lambda found: found["latency"]["samples_ms"].pop("dense"), "latencies of compact, expected"),
        (lambda found: found["parity"]["outputs"].pop("depth"), "outputs of segmentation, expected"),
        (lambda found: found.update(images=None), "packed images are missing"),
        (lambda found: found["latency"]["samples_ms"]["dense"].__setitem__(0, -1.0), "greater than 0"),
        (lambda found: found["parity"]["outputs"]["depth"].pop("scale"), "Field required"),
        (lambda found: found["images"].update(file="../results.outputs.npz"), "images.file"),
        (lambda found: found["models"]["compact"].update(threads="one"), "models.compact.threads"),
        (lambda found: found["machine"].update(processors="two"), "machine.processors"),
        (lambda found: found.update(versions={}), "versions"),
        (lambda found: found["latency"]["phases_ms"].update(compact=[]), "latency.phases_ms.compact"),
    ],
)
def test_results_that_lack_something_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, fresh: tuple[Run, Path]
) -> None:
    run, results = fresh
    edit(results, change)
    assert message in refused(run, results)


def test_outputs_that_are_missing_or_others_are_refused(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    outputs = results.with_name("results.outputs.npz")
    kept = outputs.read_bytes()
    outputs.unlink()
    assert f"{outputs} is missing" in refused(run, results)
    outputs.write_bytes(kept + b"x")
    assert "is not the file that kit.py wrote" in refused(run, results)
    with outputs.open("wb") as file:
        np.savez(file, depth=np.zeros((2, 1, 32, 48), np.float32))
    edit(results, lambda found: found["images"].update(sha256=file_sha256(outputs)))
    assert (
        "holds 2 float32 of 'depth', expected 3 float32 of 'segmentation', 3 float32 of 'depth'"
        in refused(run, results)
    )


def test_images_of_other_data_are_refused(fresh: tuple[Run, Path]) -> None:
    run, results = fresh
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("    val: 5\n", "    val: 5\n    seed: 7\n"))
    other = Run.open(run.path)
    assert other.recipe.data.options["seed"] == 7
    assert "are not those that the kit was packed with" in refused(other, results, DataError)


def test_values_that_are_no_numbers_fail(fresh: tuple[Run, Path]) -> None:
    run, results = fresh

    def overflow(found: dict[str, Any]) -> None:
        del found["parity"]["outputs"]["depth"]
        found["parity"]["not_finite"] = {"depth": 3}

    edit(results, overflow)
    assert "3 of 'depth'" in refused(run, results, NonFiniteError)


def test_gates_that_fail_are_kept_and_fail_the_command(
    fresh: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = fresh

    def worse(found: dict[str, Any]) -> None:
        found["parity"]["outputs"]["depth"]["max_relative"] = 0.5
        found["models"]["compact"]["layers"] = {"fp16": 19}

    edit(results, worse)
    assert main(["collect", str(run.path), str(results)]) == 4
    said = capsys.readouterr()
    assert "a Board failed 2 of" in said.err
    assert "fp32 was asked for" in said.err
    assert "depth: largest difference 5.00e-01 of the range, beyond" in said.err
    (record,) = read_records(run.path / "export" / "small")
    assert not record.passed


def test_collected_devices_are_in_the_report(
    fresh: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = fresh
    edit(results, lambda found: found.update(held_back=["GPU: power cap"]))
    assert main(["collect", str(run.path), str(results)]) == 0
    assert "held itself back while it was measured: GPU: power cap" in capsys.readouterr().out
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "Measured on devices" in page and "a Board, small" in page
    assert "a Board held itself back while small was measured" in page
    (device,) = json.loads((run.path / "report.json").read_text())["runs"][0]["devices"]
    assert device["record"]["name"] == "a Board"
    assert "| a Board, small |" in (run.path / "README.md").read_text()


def test_a_file_that_is_no_results_is_named(fresh: tuple[Run, Path], tmp_path: Path) -> None:
    run, _ = fresh
    assert "there is no such file" in refused(run, tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    assert "is no results file of a device kit" in refused(run, tmp_path / "other.json")


def test_a_kit_replaces_a_kit_and_nothing_else(fresh: tuple[Run, Path], tmp_path: Path) -> None:
    run, _ = fresh
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no kit"):
        write_kit(run, "small", tmp_path / "mine")
    for _ in range(2):
        write_kit(run, "small", tmp_path / "again")
    assert json.loads((tmp_path / "again" / MANIFEST).read_text())["images"] is None
    assert not (tmp_path / "again" / IMAGES).exists()
