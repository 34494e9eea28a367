"""From a user's module to a verified bundle: what it holds, and what its programs and gates say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from compactmtl.config.target import OnnxConfig, ParityConfig
from compactmtl.errors import ArtifactError, ConfigError, GateError, MissingDependencyError
from compactmtl.export import Bundle, Predictor, export_bundle
from compactmtl.report import write_bundle_report
from compactmtl.surgery import compact
from tests.support.own_module import FLOAT, INT8, SIZE, images, loader, scene, scorer

WORDS: dict[str, dict[str, Any]] = {
    "depth": {"kind": "depth", "unit": "m"},
    "scores": {"kind": "classification", "classes": list("abcde")},
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Raw tensors in and out, with a baseline."""
    model = scene()
    folder = tmp_path_factory.mktemp("arrays") / "bundle"
    return export_bundle(
        model, images(2), folder, target=FLOAT, evaluate=scorer(model), baseline=scene(16, seed=1)
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Pictures in, described outputs, int8."""
    model = scene()
    folder = tmp_path_factory.mktemp("pictures") / "bundle"
    return export_bundle(
        model,
        images(2),
        folder,
        target=INT8.model_copy(update={"latency": INT8.latency.model_copy(update={"not_slower": ()})}),
        evaluate=scorer(model),
        calibration=loader(),
        images={},
        outputs=WORDS,
    )


def test_a_sound_module_passes_every_gate(arrays: Bundle) -> None:
    found = arrays.verification
    assert found is not None and found.passed and arrays.require() is arrays
    assert {(gate.gate, gate.subject) for gate in found.gates} == {
        ("parity", "depth"),
        ("parity", "scores"),
        ("accuracy", "scores.accuracy"),
        ("accuracy", "depth.abs_err"),
    }
    assert found.accuracy.torch == {"scores": {"accuracy": 1.0}, "depth": {"abs_err": 1.0}}
    assert found.accuracy.higher_is_better == {"scores": {"accuracy": True}, "depth": {"abs_err": False}}
    assert found.accuracy.samples == 12


def test_the_baseline_is_scored_and_timed_beside_it(arrays: Bundle) -> None:
    found = arrays.verification
    assert found is not None and found.accuracy.baseline is not None
    assert found.accuracy.baseline["depth"]["abs_err"] > 1.01  # another network
    assert found.latency.reference == "dense" and set(found.latency.stats) == {"dense", "model"}


def test_what_nobody_described_is_said_to_be_raw(arrays: Bundle) -> None:
    assert {one.values for one in arrays.info.outputs} == {"raw"}
    assert all("did not say" in one.meaning for one in (*arrays.info.inputs, *arrays.info.outputs))
    assert arrays.info.inputs[0].colors is None and arrays.info.preprocessing is None
    with pytest.raises(ArtifactError, match="takes arrays"):
        Predictor.open(arrays.path)


def test_a_page_of_the_bundle_alone(arrays: Bundle, tmp_path: Path) -> None:
    page = write_bundle_report([arrays], tmp_path).read_text()
    assert "held: parity, accuracy vs PyTorch" in page and "scores, accuracy" in page
    assert "did not say what it means" in page and "val split" not in page
    report = json.loads((tmp_path / "report.json").read_text())
    directions = {task["name"]: task["metrics"] for task in report["tasks"]}
    assert directions["depth"]["abs_err"]["higher_is_better"] is False
    with pytest.raises(ConfigError, match="is named twice"):
        write_bundle_report([arrays, arrays], tmp_path)


@pytest.mark.slow  # exports
def test_int8_is_calibrated_and_described(pictures: Bundle) -> None:
    info = pictures.info
    assert info.precision is not None and info.precision.precision == "int8"
    assert info.precision.samples == 12  # all that the loader had
    assert info.precision.held is True
    assert [one.kind for one in info.outputs] == ["depth", "classification"]
    assert info.outputs[0].unit == "m" and info.outputs[1].classes == tuple("abcde")
    assert info.inputs[0].normalize is not None and info.preprocessing is not None


def run_infer(bundle: Bundle, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle.path / "infer.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow  # starts Python twice
def test_the_program_of_arrays_gives_what_the_module_gives(arrays: Bundle, tmp_path: Path) -> None:
    model, image = scene(), images(3)[2:]
    np.save(tmp_path / "one.npy", image.numpy())
    assert run_infer(arrays, "--check", folder=tmp_path).returncode == 0
    done = run_infer(arrays, "image=one.npy", "--out", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        truth = model(image)
    for name, one in truth.items():
        assert np.abs(np.load(tmp_path / "out" / f"{name}.npy") - one.numpy()).max() < 1e-4


@pytest.mark.slow  # starts Python
@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((1, 3, 8, 8), np.float32), "takes the shape"),
        (np.zeros((1, 3, *SIZE), np.float64), "takes float32, found float64"),
    ],
)
def test_the_program_of_arrays_names_what_does_not_fit(
    arrays: Bundle, tmp_path: Path, array: Any, says: str
) -> None:
    np.save(tmp_path / "one.npy", array)
    done = run_infer(arrays, "one.npy", folder=tmp_path)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow  # starts Python
def test_the_program_of_pictures_agrees_with_the_golden_one(pictures: Bundle, tmp_path: Path) -> None:
    done = run_infer(pictures, "--check", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # exports
def test_predict_reads_described_outputs(pictures: Bundle) -> None:
    with Predictor.open(pictures.path) as predictor:
        found = predictor.predict(np.zeros((3, *SIZE), np.uint8))
    assert [one.task for one in found] == ["depth", "scores"]
    assert found[1].caption in tuple("abcde")


@pytest.mark.slow  # exports
def test_a_failed_gate_is_kept_and_marked(tmp_path: Path) -> None:
    model = scene()
    bundle = export_bundle(model, images(2), tmp_path / "b", target=FLOAT, latency_ms=1e-6)
    assert bundle.verification is not None and not bundle.verification.passed
    with pytest.raises(GateError, match="over 1e-06 ms"):
        Bundle.open(tmp_path / "b").require()


@pytest.mark.slow  # exports
def test_the_artifact_that_scores_worse_fails_its_gate(tmp_path: Path) -> None:
    model = scene()
    shares = iter((1.0, 0.5))  # the torch model is scored first

    def evaluate(predict: Any) -> dict[str, Any]:
        predict(images(1))
        return {"scores.accuracy": next(shares)}

    bundle = export_bundle(model, images(2), tmp_path / "b", target=FLOAT, evaluate=evaluate)
    assert "scores accuracy: 0.5 against 1 of torch" in bundle.doubt


@pytest.mark.slow  # exports
def test_int8_without_a_metric_is_judged_by_nothing(tmp_path: Path) -> None:
    quiet = INT8.model_copy(update={"latency": INT8.latency.model_copy(update={"not_slower": ()})})
    bundle = export_bundle(scene(), images(2), tmp_path / "b", target=quiet, calibration=loader())
    assert "no gate is on its outputs" in bundle.doubt
    bounded = quiet.model_copy(update={"parity": ParityConfig(tolerance=0.2)})
    assert export_bundle(scene(), images(2), tmp_path / "b", target=bounded, calibration=loader()).doubt == ""


@pytest.mark.slow  # exports
def test_a_compact_model_names_its_plan(tmp_path: Path) -> None:
    dense = scene(16)
    with torch.no_grad():
        for parameter in dense.stem.parameters():  # of a convolution and its norm
            parameter[:4] = 0
    result = compact(dense, (images(2),))
    bundle = export_bundle(
        result.model, images(2), tmp_path / "b", target=FLOAT, baseline=dense, plan=result.plan
    )
    assert bundle.info.compact and bundle.info.plan_sha256 is not None
    assert bundle.verification is not None
    assert set(bundle.verification.latency.stats) == {"dense", "compact"}


class Pair(nn.Module):
    """Two inputs, a tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        both = self.a(left) + self.b(right)
        return both.relu(), both.sum(1, keepdim=True)


@pytest.mark.slow  # exports
def test_several_inputs_a_free_batch_and_named_outputs(tmp_path: Path) -> None:
    model = Pair().eval()
    left, right = torch.randn(5, 6), torch.randn(5, 3)

    def evaluate(predict: Any) -> dict[str, Any]:
        rows, total = predict(left=left, right=right)
        return {"total.mean": float(total.mean()), "largest": float(rows.max())}

    bundle = export_bundle(
        model,
        {"left": left, "right": right},
        tmp_path / "b",
        target=FLOAT.model_copy(update={"onnx": OnnxConfig(dynamic_batch=True)}),
        evaluate=evaluate,
        output_names=["rows", "total"],
    )
    assert bundle.doubt == ""
    assert [one.shape for one in bundle.info.inputs] == [("batch", 6), ("batch", 3)]
    assert bundle.verification is not None
    accuracy = bundle.verification.accuracy
    assert set(accuracy.artifact) == {"total", "model"} and set(accuracy.by_batch) == {1, 3}


class Mean(nn.Module):
    """An output that has no batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def forward(self, table: Tensor) -> dict[str, Tensor]:
        found = self.layer(table)
        return {"rows": found, "mean": found.mean()}


@pytest.mark.slow  # exports
def test_an_output_without_a_batch(tmp_path: Path) -> None:
    rows = torch.randn(3, 4)

    def evaluate(count: int) -> Any:
        return lambda predict: {"mean": float(predict(rows[:count])["mean"]) + 5}

    model = Mean().eval()
    assert export_bundle(model, rows, tmp_path / "b", target=FLOAT, evaluate=evaluate(3)).doubt == ""
    with pytest.raises(ArtifactError, match=r"output 'mean' of shape .* can't be put together"):
        export_bundle(model, rows, tmp_path / "c", target=FLOAT, evaluate=evaluate(2))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no bundle"):
        export_bundle(scene(), images(2), tmp_path, target=FLOAT)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow  # exports
def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    model = scene()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    export_bundle(model, images(2), tmp_path / "b", target=FLOAT, evaluate=scorer(model))
    assert not model.training
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


class Gray(nn.Module):
    """A class a pixel of gray pictures (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"area": self.layer(image)}


def test_gray_letterboxed_pictures_of_any_module(tmp_path: Path) -> None:
    bundle = export_bundle(
        Gray().eval(),
        torch.randn(1, 1, *SIZE),
        tmp_path / "b",
        target=FLOAT,
        images={"mean": [0.4], "std": [0.2], "resize": "letterbox"},
        outputs={"area": {"kind": "segmentation", "classes": ["a", "b", "c"]}},
    )
    (taken,) = bundle.info.inputs
    assert (taken.colors, taken.channels) == ("gray", 1)
    assert taken.resize is not None and (taken.resize.how, taken.resize.fill) == ("letterbox", (102,))
    Image.new("L", (70, 20), 90).save(tmp_path / "wide.png")
    with Predictor.open(bundle.path) as predictor:
        photo = predictor.photo(tmp_path / "wide.png")
        (one,) = predictor.predict(photo)
        assert one.on(photo).shape == (20, 70)


@pytest.mark.slow  # exports
def test_a_target_that_cannot_run_here_is_prepared(tmp_path: Path) -> None:
    model = Pair().eval()
    given = (torch.randn(4, 6), torch.randn(4, 3))
    with pytest.raises(MissingDependencyError, match="can't run here"):
        export_bundle(model, given, tmp_path / "b", target="tensorrt-fp32")
    names = ["rows", "/head/sum"]  # as ONNX files from elsewhere have them
    bundle = export_bundle(
        model, given, tmp_path / "b", target="tensorrt-fp32", prepare=True, output_names=names
    )
    assert bundle.doubt == "it was never verified"
    prepared = json.loads((bundle.path / "prepared.json").read_text())
    assert set(prepared["inputs"]) == {"left", "right"} and prepared["commands"]
    assert prepared["graph"]["passed"] is True  # on the CPU
    with pytest.raises(ConfigError, match="can run here"):
        export_bundle(model, given, tmp_path / "c", target=FLOAT, prepare=True)
