"""TensorRT for RTX on a real GPU: engines built ahead of time run, agree, and are timed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compactmtl.backends import get_backend, load_target
from compactmtl.backends.driver import cuda_device
from compactmtl.backends.tensorrt.engine import engine_path
from compactmtl.config.target import Target
from compactmtl.export import Bundle
from compactmtl.export.run import export_run
from compactmtl.train import Run
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx
from tests.support.real_runs import compact_half, write_run

pytestmark = pytest.mark.gpu


@pytest.fixture
def compute() -> str:
    found = get_backend("tensorrt-rtx").availability(Target(backend="tensorrt-rtx"))
    device, _ = cuda_device()
    if not found.available or device is None:
        pytest.skip(f"tensorrt-rtx: {found.reason}")
    return f"tensorrt_rtx.compute=[{device.capability}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return compact_half(write_run(tmp_path_factory.mktemp("runs") / "compact"))


@pytest.mark.parametrize("graph", [True, False])
def test_an_engine_that_was_built_ahead_runs_as_the_module(tmp_path: Path, compute: str, graph: bool) -> None:
    target = load_target(
        "tensorrt-rtx-fp32", (compute, f"tensorrt_rtx.cuda_graph={str(graph).lower()}", "latency.batch=2")
    )
    module, backend = TwoHeads().eval(), get_backend("tensorrt-rtx")
    model = write_onnx(tmp_path / "model.onnx", module)
    assert backend.build_ahead(model, target) is not None
    assert engine_path(model).exists()
    with backend.open(model, target) as runner:
        for batch in (2, 1, 8, 2):
            image = torch.randn(batch, WIDTH)
            found = runner.run({"image": image.numpy()})
            for name, expected in module(image).items():
                # float32 without TF32: six products summed in another order
                np.testing.assert_allclose(found[name], expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_whole_road_of_each_target(run: Run, tmp_path: Path, compute: str, precision: str) -> None:
    """Parity and latency of an untrained model; its metrics mean nothing, so their bound is wide."""
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    name = f"tensorrt-rtx-{precision}"
    overrides = (
        "latency.warmup=3",
        "latency.repeats=10",
        "accuracy.export_drop=1.0",
        "int8.search=0",
        compute,
    )
    found = export_run(copy, name, load_target(name, overrides))
    assert found.parity.passed
    assert found.latency.stats["compact"].precision == precision
    with Bundle.open(copy.path / "export" / name).runner() as runner:
        assert set(runner.output_names) == set(copy.tasks)
