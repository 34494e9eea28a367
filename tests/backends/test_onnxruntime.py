"""The ONNX Runtime backend: what was asked for or an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compactmtl.backends import get_backend
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.machine import cpu_name
from compactmtl.backends.onnxruntime.kit import OnnxRuntimeOnDevice
from compactmtl.backends.precision import PrecisionError, check_precision
from compactmtl.config.target import Target
from compactmtl.errors import MISSING, ArtifactError, ConfigError, MissingDependencyError
from compactmtl.export.precision import apply_precision
from tests.support.conv_onnx import images, write_conv
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx

CPU = Target(backend="onnxruntime")
CUDA = Target(backend="onnxruntime", provider="CUDAExecutionProvider")
BACKEND = get_backend("onnxruntime")


@pytest.fixture
def module() -> TwoHeads:
    return TwoHeads().eval()


@pytest.fixture
def path(tmp_path: Path, module: TwoHeads) -> Path:
    return write_onnx(tmp_path / "model.onnx", module)


def test_outputs_come_by_name_in_the_models_order(path: Path, module: TwoHeads) -> None:
    image = torch.randn(4, WIDTH)
    with BACKEND.open(path, CPU) as runner:
        found = runner.run({"image": image.numpy()})
    assert list(found) == ["zeta", "alpha"]
    expected = module(image)
    for name, array in found.items():
        # float32 sums of six products in another order
        np.testing.assert_allclose(array, expected[name].detach().numpy(), rtol=1e-5, atol=1e-5)


def test_description_is_of_the_open_session(path: Path) -> None:
    with BACKEND.open(path, CPU.model_copy(update={"threads": 2})) as runner:
        found = runner.describe()
    assert (found.backend, found.provider, found.threads) == ("onnxruntime", "CPUExecutionProvider", 2)
    assert found.version == onnxruntime.__version__


def test_provider_that_the_build_lacks_is_missing_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match="has no CUDAExecutionProvider") as caught:
        BACKEND.open(path, CUDA)
    assert caught.value.exit_code == MISSING
    assert "compactmtl[gpu]" in caught.value.hint


def test_provider_that_onnxruntime_drops_while_opening_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime opens on the CPU with a mere warning where a GPU provider can't be loaded."""
    gpu = CudaDevice("a GPU", "8.6", 8 << 30, "13.0")
    monkeypatch.setattr("compactmtl.backends.onnxruntime.entry.cuda_device", lambda: (gpu, ""))
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    real = onnxruntime.InferenceSession

    def falls_back(model: str, options: object, providers: list[str], provider_options: object) -> object:
        assert provider_options == [{"use_tf32": "0"}]  # float32 is float32
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"  # type: ignore[attr-defined]
        return real(model, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(MissingDependencyError, match="fell back to CPUExecutionProvider"):
        BACKEND.open(path, CUDA)


def test_missing_package_names_its_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="can't be imported") as caught:
        BACKEND.open(path, CPU)
    assert "compactmtl[cpu]" in caught.value.hint


def test_gpu_provider_without_a_gpu_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactmtl.backends.onnxruntime.entry.cuda_device", lambda: (None, "no driver"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    found = BACKEND.availability(CUDA)
    assert not found.available
    assert "no driver" in found.reason


@pytest.mark.parametrize("size", [0, 40, -20])
def test_truncated_file_is_an_artifact_error(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        BACKEND.open(path, CPU)


def test_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a file"):
        BACKEND.open(tmp_path / "none.onnx", CPU)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"picture": np.zeros((1, WIDTH), np.float32)}, "takes inputs"),
        ({"image": np.zeros((1, WIDTH + 1), np.float32)}, r"takes shape \(any, 6\), found \(1, 7\)"),
        ({"image": np.zeros((WIDTH,), np.float32)}, "takes shape"),
        ({"image": np.zeros((1, WIDTH), np.float64)}, "takes float32, found float64"),
    ],
)
def test_wrong_input_is_an_artifact_error(path: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with BACKEND.open(path, CPU) as runner, pytest.raises(ArtifactError, match=message):
        runner.run(inputs)


def test_a_size_that_the_graph_cannot_compute_is_an_artifact_error(tmp_path: Path) -> None:
    free = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", "size"])
    fixed = numpy_helper.from_array(np.ones((1, 4), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "weight"], ["sum"])],
        "g",
        [free],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
        [fixed],
    )
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    with BACKEND.open(file, CPU) as runner:
        assert runner.run({"image": np.zeros((2, 4), np.float32)})["sum"].shape == (2, 4)
        with pytest.raises(ArtifactError, match=r"ONNX Runtime fails while it runs .*m\.onnx"):
            runner.run({"image": np.zeros((2, 3), np.float32)})


def test_a_misspelt_provider_is_told_the_right_one() -> None:
    found = BACKEND.availability(Target(backend="onnxruntime", provider="CPUExecutionProvder"))
    assert not found.available
    assert found.hint == "did you mean CPUExecutionProvider?"


def test_a_lower_precision_that_nothing_shows_is_not_believed() -> None:
    check_precision({}, "fp32", "it")
    with pytest.raises(PrecisionError, match="int8 was asked for, and it shows no layer"):
        check_precision({}, "int8", "it")


def test_closed_runner_refuses(path: Path) -> None:
    runner = BACKEND.open(path, CPU)
    runner.close()
    with pytest.raises(ArtifactError, match="closed"):
        runner.run({"image": np.zeros((1, WIDTH), np.float32)})


def test_unknown_backend_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'onnx'") as caught:
        get_backend("onnx")
    assert "onnxruntime" in caught.value.hint


def test_precision_that_the_provider_replaces_is_an_error(tmp_path: Path) -> None:
    """The CPU provider runs a float16 graph in float32, between casts of its own, and says nothing."""
    model = write_conv(tmp_path / "model.onnx")
    half = CPU.model_copy(update={"precision": "fp16"})
    apply_precision(model, half, [{"image": images(2)}])
    with pytest.raises(PrecisionError, match=r"fp16 was asked for.*runs 3 layers in fp32") as caught:
        BACKEND.open(model, half)
    assert caught.value.exit_code == MISSING
    with BACKEND.open(model, CPU) as runner:
        assert runner.describe().layers == {"fp32": 3}


def test_int8_is_proved_by_the_graph_that_runs_and_timed_by_layer(tmp_path: Path) -> None:
    model = write_conv(tmp_path / "model.onnx")
    int8 = CPU.model_copy(update={"precision": "int8"})
    with pytest.raises(PrecisionError, match="int8 was asked for"):
        BACKEND.open(model, int8)
    apply_precision(model, int8, [{"image": images(2)}])
    with pytest.raises(PrecisionError, match=r"fp32 was asked for.*3 layers in int8"):
        BACKEND.open(model, CPU)
    with BACKEND.open(model, int8) as runner:
        assert runner.describe().layers == {"int8": 3}
        times = runner.layer_times({"image": images()}, repeats=2)
    assert {"QLinearConv", "QuantizeLinear"} <= {one.operator for one in times}
    assert all(one.milliseconds >= 0 for one in times)


def test_float32_is_float32_on_a_device_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's provider rounds products to TF32 unless it is told not to: by a device kit and by a bundle's program as here."""
    real, given = onnxruntime.InferenceSession, list[tuple[str, dict[str, str]]]()

    class Session(real):  # type: ignore[misc, valid-type]
        def __init__(self, model: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            given.extend(providers)
            super().__init__(model, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    kit = BACKEND.device_kit(CUDA, {"image": (1, WIDTH)})
    assert kit is not None
    OnnxRuntimeOnDevice(json.loads(json.dumps(dict(kit.settings)))).session(path)
    part: dict[str, Any] = {}
    exec(compile(BACKEND.in_bundle(CUDA), "part", "exec"), part)
    part["open_model"](path, {"provider": "CUDAExecutionProvider", "threads": 1})
    assert given == [("CUDAExecutionProvider", {"use_tf32": "0"})] * 2


def test_a_kit_asks_the_gpu_that_cuda_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CudaDevice("the second GPU", "8.6", 8 << 30, "13.0", "0000:65:00.0")
    monkeypatch.setattr("compactmtl.backends.onnxruntime.kit.cuda_device", lambda: (gpu, ""))
    found = []
    for target in (CUDA, CPU):
        kit = BACKEND.device_kit(target, {"image": (1, WIDTH)})
        assert kit is not None
        runtime = kit.runtime(dict(kit.settings))
        found.append((runtime.device(), runtime.board()))
    assert found == [("the second GPU", "0000:65:00.0"), (cpu_name(), "")]
    monkeypatch.setattr(
        "compactmtl.backends.onnxruntime.kit.cuda_device", lambda: (None, "it does not answer")
    )
    kit = BACKEND.device_kit(CUDA, {"image": (1, WIDTH)})
    assert kit is not None
    assert (
        kit.runtime(dict(kit.settings)).device() == "it does not answer"
    )  # and not the processor, which ran nothing
