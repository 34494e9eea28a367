"""A bundle for a target that can't run here, and the whole TensorRT pipeline against the fake with the real names."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from compactmtl.backends import load_target, open_graph
from compactmtl.backends.tensorrt.engine import EngineFacts
from compactmtl.cli.main import main
from compactmtl.cli.preparing import raise_missing, summary
from compactmtl.config.target import Target
from compactmtl.data.inputs import image_of
from compactmtl.errors import MISSING, USAGE, ConfigError, GateError, MissingDependencyError
from compactmtl.export import Bundle
from compactmtl.export.artifact import Validation
from compactmtl.export.prepare import Prepared, prepare_run
from compactmtl.export.run import export_run
from compactmtl.report.deployment import prepared_views
from compactmtl.train import Run
from compactmtl.verify.parity import compare_outputs
from compactmtl.verify.result import OutputParity, ParityResult
from tests.support.fake_tensorrt import install
from tests.support.rtx import rtx

NO_GPU = "compactmtl.backends.tensorrt.backend.cuda_device"
FAST = ("latency.warmup=1", "latency.repeats=3", "int8.samples=4", "fp16.samples=4")


@pytest.fixture
def run(compacted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(NO_GPU, lambda: (None, "no NVIDIA driver: none here"))
    return Run.open(shutil.copytree(compacted.path, tmp_path / "run"))


def prepared(run: Run, name: str) -> Prepared:
    return Prepared.model_validate_json((run.path / "export" / name / "prepared.json").read_text())


@pytest.mark.slow  # exports a model
def test_prepare_writes_what_another_machine_needs_and_says_that_nothing_ran(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: the exact float16 graph meant for TensorRT runs on the CPU and agrees with torch."""
    assert main(["export", str(run.path), "--target", "tensorrt-fp16", "--prepare"]) == MISSING
    said = capsys.readouterr()
    assert "no NVIDIA driver: none here" in said.err
    assert "prepared, not run" in said.out
    folder = run.path / "export" / "tensorrt-fp16"
    found = prepared(run, "tensorrt-fp16")
    assert found.status == "not run"
    assert found.graph is not None
    outputs = {output.name: output for output in found.graph.outputs}
    # it is float16, and within its parity
    assert all(1e-6 < output.max_relative <= 1e-2 and output.passed for output in outputs.values())
    assert Bundle.open(folder).doubt == "it was never verified"
    for tensor in (*found.inputs.values(), *found.outputs.values()):
        array = np.fromfile(folder / tensor.file, tensor.dtype)
        assert array.size == np.prod(tensor.shape)
    assert {"trtexec-10.sh", "trtexec-11.sh"} == set(found.commands)
    assert "--loadInputs=image:input.image.bin" in (folder / "trtexec-11.sh").read_text()


def test_a_graph_that_fails_on_the_cpu_already_is_a_failed_gate(capsys: pytest.CaptureFixture[str]) -> None:
    output = OutputParity(
        name="depth", shape=(1,), max_abs=1, max_relative=0.5, cosine=0, tolerance=1e-2, passed=False
    )
    sound = Prepared(
        target="t",
        reason="no GPU",
        hint="",
        bundle_sha256="",
        graph=ParityResult(outputs=(), samples=1, passed=True),
        graph_note="on the CPU",
        inputs={},
        outputs={},
        commands=(),
        versions={},
        created="",
    )
    with pytest.raises(MissingDependencyError, match="prepared, not run: t: no GPU"):
        raise_missing({"t": sound})
    beyond = sound.model_copy(update={"graph": ParityResult(outputs=(output,), samples=1, passed=False)})
    with pytest.raises(GateError, match=r"t: depth: largest difference 5\.00e-01 of the range, beyond 1e-02"):
        raise_missing({"t": beyond})
    with pytest.raises(GateError, match="no choice of layers in float"):
        raise_missing({"t": sound.model_copy(update={"held": False})})
    shown = beyond.graph.outputs[0].model_copy(update={"tolerance": math.inf, "passed": True})  # type: ignore[union-attr]
    free = sound.model_copy(update={"graph": ParityResult(outputs=(shown,), samples=1, passed=True)})
    assert "graph: depth: largest difference 5.00e-01 of the range, not bounded" in list(summary(free))


@pytest.mark.slow  # exports and calibrates a model
def test_the_int8_graph_meant_for_tensorrt_runs_on_the_cpu(run: Run) -> None:
    target = load_target("tensorrt-int8", FAST)
    found = prepare_run(run, "int8", target)
    # its values are shown and not bounded: int8 is judged by the tasks' metrics
    assert found.graph is not None and found.graph.passed
    images = list(
        image_of(Validation.load(run, target).images)[:, None]
    )  # one by one; noise lies beyond the calibrated ranges
    with open_graph(run.path / "export" / "int8" / "model.onnx", target) as runner:
        graph = compare_outputs(run.load_compact(), runner, images, target, "graph")
    assert all(output.cosine > 0.9 for output in graph.outputs)
    record = Bundle.open(run.path / "export" / "int8").info.precision
    assert record is not None and record.lowered > 0


@pytest.mark.slow  # exports a model
def test_a_bundle_that_was_verified_elsewhere_is_not_overwritten(run: Run) -> None:
    folder = run.path / "export" / "t"
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text("{}")
    with pytest.raises(ConfigError, match="verified elsewhere"):
        prepare_run(run, "t", Target(backend="tensorrt"))


def test_what_can_run_is_not_prepared(run: Run) -> None:
    with pytest.raises(ConfigError, match="can run here"):
        prepare_run(run, "t", Target(backend="onnxruntime"))


@pytest.mark.slow  # exports two models
def test_one_command_builds_verifies_and_reloads_an_engine(
    compacted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the hardware: the engine is the fake's, which runs the graph that it was given."""
    fake = install(monkeypatch, tmp_path / "cache")
    run = Run.open(shutil.copytree(compacted.path, tmp_path / "run"))
    found = export_run(run, "trt", load_target("tensorrt-fp32", FAST))
    assert found.passed
    bundle = Bundle.open(run.path / "export" / "trt")
    assert {"model.onnx", "model.engine", "model.engine.json", "model.layers.json"} <= set(bundle.info.files)
    assert found.latency.stats["compact"].backend == "tensorrt"
    facts = json.loads((bundle.path / "model.engine.json").read_text())
    assert facts["precision"] == "fp32"
    fake.calls.clear()
    with bundle.runner() as runner:
        assert set(runner.output_names) == set(run.tasks)
    assert "build" not in fake.calls


@pytest.mark.slow  # exports a model
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_target_whose_builder_needs_no_gpu_is_built_and_not_run(
    run: Run, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx()
    name = f"tensorrt-rtx-{precision}"
    target = run.path / f"{name}.yaml"
    interface = "onnx: {dynamic_batch: true, preprocess: true, postprocess: {segmentation: argmax}}\n"
    target.write_text(f"extends: {name}\n{interface}int8: {{search: 0, samples: 4}}\nfp16: {{samples: 4}}\n")
    assert main(["export", str(run.path), "--target", str(target), "--prepare"]) == MISSING
    said = capsys.readouterr()
    assert "prepared, built, not run" in said.out and "prepared, built, not run" in said.err
    found = prepared(run, name)
    assert found.status == "built, not run"
    assert "compute capability 8.0, 8.6, 8.9, 12.0" in found.built and found.built in said.out
    bundle = Bundle.open(run.path / "export" / name)
    assert bundle.doubt == "it was never verified"
    assert {"model.onnx", "model.engine", "model.engine.json"} <= set(bundle.info.files)
    facts = EngineFacts.model_validate_json((bundle.path / "model.engine.json").read_text())
    assert facts.precision == precision and facts.profile["image"].max[0] == 8
    (view,) = prepared_views(run.path)
    assert (view.target, view.built) == (name, found.built)


@pytest.mark.slow  # exports a model
def test_a_capability_without_the_precision_stops_the_preparation(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx()
    target = run.path / "turing.yaml"
    target.write_text("extends: tensorrt-rtx-bf16\ntensorrt_rtx: {compute: [7.5, 8.9]}\n")
    assert main(["export", str(run.path), "--target", str(target), "--prepare"]) == USAGE
    assert "compute capability 7.5 has no bfloat16" in capsys.readouterr().err
    assert not (run.path / "export" / "turing").exists()
