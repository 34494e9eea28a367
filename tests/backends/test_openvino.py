"""The OpenVINO backend: device and precision as asked, read back from the compiled model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compactmtl.backends import get_backend
from compactmtl.backends.openvino.entry import _reason
from compactmtl.backends.precision import PrecisionError
from compactmtl.config.precision import Int8Config
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError
from compactmtl.export.precision import apply_precision
from tests.support.conv_onnx import OUTPUTS, images, write_conv
from tests.support.masking import FLOAT32, assert_close

pytest.importorskip("openvino")
TARGET = Target(backend="openvino")
BACKEND = get_backend("openvino")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conv(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_conv(tmp_path_factory.mktemp("int8") / "model.onnx")
    target = Target(backend="openvino", precision="int8", int8=Int8Config(samples=2))
    apply_precision(path, target, [{"image": images(2)}])
    return path


def test_float32_is_pinned_and_agrees_with_onnxruntime(path: Path) -> None:
    with BACKEND.open(path, TARGET) as runner:
        found = runner.run({"image": images()})
        first = found["map"].copy()
        runner.run({"image": images(seed=1)})
        description = runner.describe()
    assert (description.precision, description.provider, description.threads) == ("fp32", "CPU", 1)
    assert description.layers == {"fp32": 3}
    assert list(found) == list(OUTPUTS)
    np.testing.assert_array_equal(found["map"], first)  # outputs are the caller's own
    with get_backend("onnxruntime").open(path, Target(backend="onnxruntime")) as runner:
        expected = runner.run({"image": images()})
    for name in OUTPUTS:
        # its kernels may transform a convolution (Winograd); bfloat16 would be off by 1e-3
        assert_close(torch.from_numpy(expected[name]), torch.from_numpy(found[name]), 10 * FLOAT32)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_is_what_the_layers_run(path: Path, precision: str) -> None:
    target = TARGET.model_copy(update={"precision": precision})
    if not BACKEND.availability(target).available:
        pytest.skip(f"this processor has no {precision}")
    with BACKEND.open(path, target) as runner:
        assert runner.describe().precision == precision
        assert set(runner.describe().layers) == {precision}


def test_int8_is_told_from_float(path: Path, quantized: Path) -> None:
    int8 = TARGET.model_copy(update={"precision": "int8"})
    with BACKEND.open(quantized, int8) as runner:
        assert runner.describe().layers.get("int8", 0) >= 2
        assert runner.describe().precision == "int8"
    with pytest.raises(PrecisionError, match="int8 was asked for, OpenVINO on CPU runs 3 layers in fp32"):
        BACKEND.open(path, int8)
    with pytest.raises(PrecisionError, match="fp32 was asked for"):
        BACKEND.open(quantized, TARGET)


def test_device_that_is_not_there_is_missing(path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="sees no device NPU9"):
        BACKEND.open(path, TARGET.model_copy(update={"device": "NPU9"}))


def test_missing_package_names_its_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="can't be imported") as caught:
        BACKEND.open(path, TARGET)
    assert "compactmtl[openvino]" in caught.value.hint


def test_broken_file_is_the_files_fault(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError, match="not a model that OpenVINO can load"):
        BACKEND.open(broken, TARGET)


def test_a_node_that_openvino_cannot_run_is_named_with_the_reason() -> None:
    said = RuntimeError(
        "Exception from src/inference/src/cpp/core.cpp:84:\n"
        "Check 'false' failed at src/unconverted_ops_report.cpp:151:\n"
        "FrontEnd API failed with OpConversionFailure:\n"
        "Model wasn't fully converted. Failed operations detailed log:\n"
        "-- AveragePool-18 with a message:\n"
        "While validating ONNX node '<Node(AveragePool): avg_pool2d_2>': Check 'cmp::le(kernel, ...)' failed\n"
        "While validating node 'opset16::AvgPool AvgPool_909' with friendly_name 'AvgPool_909':\n"
        "Kernel after dilation has size (dim: 2) larger than the data shape after padding (dim: 1) at axis 0.\n"
    )
    assert _reason(said) == (
        "AveragePool 'avg_pool2d_2': Kernel after dilation has size (dim: 2) larger than the data shape after"
        " padding (dim: 1) at axis 0."
    )


def test_layers_are_timed(path: Path) -> None:
    with BACKEND.open(path, TARGET) as runner:
        times = runner.layer_times({"image": images()}, repeats=2)
    assert sum(one.operator == "Convolution" for one in times) == 2
    assert all(one.milliseconds >= 0 for one in times)
