"""Any number of samples through a model of fixed batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.backends import Description, Runner, TensorInfo, get_backend
from compactmtl.backends.base import Arrays
from compactmtl.backends.batching import fixed_batch, run_batched
from compactmtl.config.target import Target
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx


class Doubling(Runner):
    """Doubles its input and counts its calls; takes exactly `batch` samples."""

    def __init__(self, batch: int | None) -> None:
        self.inputs = (TensorInfo("x", (batch, 2), "float32"),)
        self.outputs = (TensorInfo("y"),)
        self.calls = 0

    def _run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"y": inputs["x"] * 2}

    def describe(self) -> Description:
        raise NotImplementedError


@given(count=st.integers(1, 20), batch=st.integers(1, 8))
def test_every_sample_gets_its_own_answer(count: int, batch: int) -> None:
    runner = Doubling(batch)
    x = np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)
    np.testing.assert_array_equal(run_batched(runner, {"x": x})["y"], x * 2)
    assert runner.calls == -(-count // batch)


def test_free_batch_runs_once() -> None:
    runner = Doubling(None)
    assert fixed_batch(runner) is None
    assert run_batched(runner, {"x": np.ones((7, 2), np.float32)})["y"].shape == (7, 2)
    assert runner.calls == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_real_file_of_fixed_batch(tmp_path: Path, batch: int) -> None:
    module = TwoHeads().eval()
    x = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
    target = Target(backend="onnxruntime")
    with get_backend("onnxruntime").open(write_onnx(tmp_path / "free.onnx", module), target) as runner:
        expected = runner.run({"image": x})
    path = write_onnx(tmp_path / "fixed.onnx", module, batch=batch)
    with get_backend("onnxruntime").open(path, target) as runner:
        assert fixed_batch(runner) == batch
        found = run_batched(runner, {"image": x})
    for name in ("zeta", "alpha"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)  # float32 rounding
