"""Faults planted in graphs come back from the real parser and builder with their node and how to mend them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compactmtl.backends.tensorrt.parse import EngineBuildError
from compactmtl.errors import CompactError, ConfigError
from tests.support.rtx import build, pair, save, scalar, target, weight, write_product

IMAGE = [1, 3, 16, 16]
CONV = helper.make_node("Conv", ["x", "w"], ["c"], name="encoder.conv")


def zero(kind: int, value: int = 0) -> onnx.TensorProto:
    return helper.make_tensor("zero", kind, [], [value])


def unknown_operator(path: Path) -> Path:
    nodes = [CONV, helper.make_node("Frobnicate", ["c"], ["y"], name="head.frob", domain="custom")]
    return save(path, nodes, IMAGE, weight("w", (8, 3, 3, 3)))


def unsupported_operator(path: Path) -> Path:
    return save(path, [helper.make_node("Det", ["x"], ["y"], name="head.det")], IMAGE)


def quantized_on_one_side(path: Path) -> Path:
    nodes = [pair("x")[0], helper.make_node("Conv", ["x.q", "w"], ["y"], name="encoder.conv")]
    return save(path, nodes, IMAGE, weight("w", (8, 3, 3, 3)), scalar("scale", 0.05), zero(TensorProto.INT8))


def asymmetric(path: Path) -> Path:
    nodes = [*pair("x"), helper.make_node("Conv", ["x.dq", "w"], ["y"], name="encoder.conv")]
    return save(
        path, nodes, IMAGE, weight("w", (8, 3, 3, 3)), scalar("scale", 0.05), zero(TensorProto.INT8, 5)
    )


def quantized_bias(path: Path) -> Path:
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "s"], ["bias"], name="bias.dequantize", axis=0),
        helper.make_node("Conv", ["x", "w", "bias"], ["y"], name="encoder.conv"),
    ]
    scale = numpy_helper.from_array(np.full(8, 0.1, np.float32), "s")
    bias = numpy_helper.from_array(np.ones(8, np.int32), "b")
    return save(path, nodes, IMAGE, weight("w", (8, 3, 3, 3)), scale, bias)


def transposed_bytes(path: Path) -> Path:
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    return save(path, nodes, IMAGE, kind=TensorProto.UINT8)


def types_clash(path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], name="cast", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["x", "half"], ["y"], name="head.add"),
    ]
    return save(path, nodes, IMAGE)


def weights_clash(path: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="encoder.conv")]
    return save(path, nodes, IMAGE, weight("w", (8, 3, 3, 3), "fp16"))


def free_size(path: Path) -> Path:
    return save(path, [helper.make_node("Relu", ["x"], ["y"], name="relu")], ["b", 3, "h", "w"])


def over_long(path: Path) -> Path:
    """The parser itself would take 2**33 for 0."""
    return save(path, [helper.make_node("Relu", ["x"], ["y"], name="head.relu")], [1, 3, 2**33, 2])


def truncated(path: Path) -> Path:
    values = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    values.raw_data = values.raw_data[:-40]
    return save(path, [helper.make_node("Conv", ["x", "w"], ["y"], name="encoder.conv")], IMAGE, values)


def truncated_beside(path: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="encoder.conv")]
    values = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    model = onnx.load(save(path, nodes, IMAGE, values))
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    data = path.with_name(f"{path.name}.data")
    data.write_bytes(data.read_bytes()[:100])
    return path


def cut_off(path: Path) -> Path:
    truncated(path).write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize(
    ("plant", "node", "mend"),
    [
        (unknown_operator, r"head\.frob \(Frobnicate\)", "no such operator"),
        (unsupported_operator, r"head\.det \(Det\)", "no such operator"),
        (quantized_on_one_side, r"encoder\.conv \(Conv\)", "in front of each input.*int8.layout: inputs"),
        (asymmetric, r"x\.quantize \(QuantizeLinear\)", "int8.symmetric: true"),
        (quantized_bias, r"bias\.dequantize \(DequantizeLinear\)", "biases in float"),
        (transposed_bytes, r"turn \(Transpose\)", "cast it before all else"),
        (types_clash, r"head\.add \(Add\)", "cast one of the inputs"),
        (weights_clash, r"encoder\.conv \(Conv\)", "cast one of the inputs"),
        (free_size, "input x", r"tensorrt_rtx\.shapes\.x: \{min"),
        (over_long, r"head\.relu", "smaller size"),
        (truncated, r"encoder\.conv \(Conv\)", "cut off or missing"),
        (truncated_beside, r"encoder\.conv \(Conv\)", "cut off or missing"),
        (cut_off, "Failed to parse the ONNX model", "export it again"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_named_with_its_node_and_mend(
    tmp_path: Path, plant: Callable[[Path], Path], node: str, mend: str
) -> None:
    with pytest.raises((EngineBuildError, ConfigError), match=node) as caught:
        build(plant(tmp_path / "model.onnx"), target())
    assert isinstance(caught.value, CompactError)
    assert re.search(mend, caught.value.hint)
    assert "catchCudaError" not in caught.value.message  # what every message has where there is no driver


def test_a_workspace_that_is_too_small_is_said_with_its_key(tmp_path: Path) -> None:
    model = write_product(tmp_path / "m.onnx", "convolution", "fp16")
    with pytest.raises(EngineBuildError, match="within workspace limit") as caught:
        build(model, target("fp16", workspace_mib=1))
    assert "workspace_mib" in caught.value.hint
    assert build(model, target("fp16", workspace_mib=1024)).data
