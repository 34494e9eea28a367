"""TensorRT on a real GPU: build, run, parity, precision, latency, reload, and engines from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.tensorrt.engine import EngineGpuError, EngineVersionError, engine_path, facts_path
from compactmtl.backends.tensorrt.runner import TensorRTRunner
from compactmtl.config.target import LatencyConfig, OnnxConfig, Target
from compactmtl.export import Bundle, export_onnx
from compactmtl.export.run import export_run
from compactmtl.train import Run
from compactmtl.verify import check_parity, measure_latency
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx
from tests.support.real_runs import compact_half, write_run

pytestmark = pytest.mark.gpu
TARGET = Target(backend="tensorrt", latency=LatencyConfig(batch=2))


@pytest.fixture(autouse=True)
def _gpu() -> None:
    found = get_backend("tensorrt").availability(TARGET)
    if not found.available:
        pytest.skip(f"tensorrt: {found.reason}")


@pytest.fixture
def module() -> TwoHeads:
    return TwoHeads().eval()


@pytest.fixture
def model(tmp_path: Path, module: TwoHeads) -> Path:
    return write_onnx(tmp_path / "model.onnx", module)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compact_half(write_run(tmp_path_factory.mktemp("runs") / "compact"))


@pytest.mark.parametrize("graph", [True, False])
def test_outputs_are_the_modules_at_every_batch(model: Path, module: TwoHeads, graph: bool) -> None:
    target = TARGET.with_own({"tensorrt": {"cuda_graph": graph}})
    with get_backend("tensorrt").open(model, target) as runner:
        for batch in (2, 1, 8, 2):
            image = torch.randn(batch, WIDTH)
            found = runner.run({"image": image.numpy()})
            for name, expected in module(image).items():
                # float32 without TF32: six products summed in another order
                np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_parity_through_the_public_check(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 1)
    )
    image = torch.randn(2, 3, 32, 32)
    path = export_onnx(network, image, tmp_path / "m.onnx", dynamic_batch=True)
    target = TARGET.model_copy(update={"onnx": OnnxConfig(dynamic_batch=True)})
    assert check_parity(network, path, [(image,), (image[:1],)], target=target).passed


def test_an_engine_is_reloaded_and_faster_than_built(model: Path) -> None:
    backend = get_backend("tensorrt")
    files = backend.build(model, TARGET)
    assert all(file.exists() for file in files)
    facts = json.loads(facts_path(files[0]).read_text())
    with backend.open(model, TARGET) as runner:
        assert runner.describe().version == facts["tensorrt"]
        runner.run({"image": np.zeros((2, WIDTH), np.float32)})


def test_wrong_gpu_and_wrong_version_are_refused(model: Path) -> None:
    backend = get_backend("tensorrt")
    backend.build(model, TARGET)
    path = facts_path(engine_path(model))
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"gpu": "another GPU"}))
    with pytest.raises(EngineGpuError):
        backend.open(model, TARGET)
    path.write_text(json.dumps(facts | {"tensorrt": "9.9.9.9"}))
    with pytest.raises(EngineVersionError):
        backend.open(model, TARGET)


def test_latency_phases_and_layers(model: Path) -> None:
    with get_backend("tensorrt").open(model, TARGET) as runner:
        assert isinstance(runner, TensorRTRunner)
        image = torch.randn(2, WIDTH)
        found = measure_latency({"engine": runner}, image, warmup=5, repeats=20)
        assert found.stats["engine"].backend == "tensorrt"
        phases = runner.timed({"image": image.numpy()})
        assert min(phases.copy_in_ms, phases.compute_ms, phases.copy_out_ms) >= 0
        assert runner.layer_times({"image": image.numpy()}, 3)


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8"])
def test_the_whole_road_of_each_target(run: Run, tmp_path: Path, name: str) -> None:
    """Parity and latency of an untrained model; its metrics mean nothing, so their bound is wide."""
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    overrides = ("latency.warmup=3", "latency.repeats=10", "accuracy.export_drop=1.0", "int8.search=0")
    found = export_run(copy, name, load_target(name, overrides))
    assert found.parity.passed
    assert found.latency.stats["compact"].precision == name.removeprefix("tensorrt-")
    bundle = Bundle.open(copy.path / "export" / name)
    with bundle.runner() as runner:
        assert set(runner.output_names) == set(copy.tasks)
