"""ONNX Runtime's GPU providers on a real GPU: what was asked for runs, and nothing falls back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compactmtl.backends import get_backend
from compactmtl.config.target import Target
from compactmtl.verify import check_parity
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"]
)
def test_provider_runs_and_agrees(tmp_path: Path, provider: str) -> None:
    target = Target(backend="onnxruntime", provider=provider)
    found = get_backend("onnxruntime").availability(target)
    if not found.available:
        pytest.skip(f"{provider}: {found.reason}")
    module = TwoHeads().eval()
    path = write_onnx(tmp_path / "m.onnx", module)
    # TensorRT's provider may multiply in TF32, whose fraction has 10 bits
    assert check_parity(module, path, torch.randn(4, WIDTH), target=target, tolerance=1e-3).passed
    with get_backend("onnxruntime").open(path, target) as runner:
        assert runner.describe().provider == provider
