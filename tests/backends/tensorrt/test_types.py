"""The types of an engine's layers as TensorRT 10 and 11 write them, held against the graph's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compactmtl.backends.tensorrt.types import (
    EngineLayer,
    PrecisionMismatchError,
    check_types,
    compare_types,
    compute_types,
    engine_layers,
    type_name,
)
from compactmtl.errors import ArtifactError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "float32"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Half", "float16"),
        ("Float", "float32"),
        ("BFloat16", "bfloat16"),
        ("Row major linear BF16", "bfloat16"),
        ("FP8", "float8"),
        ("Int32", "int32"),
        ("N/A due to dynamic shapes", ""),
        ("Row major linear format (kLINEAR)", ""),
    ],
)
def test_types_are_read_off_both_ways_of_writing_them(text: str, expected: str) -> None:
    assert type_name(text) == expected


def layer(name: str, *types: str, kind: str = "CaskConvolution", nodes: tuple[str, ...] = ()) -> EngineLayer:
    return EngineLayer(name, kind, frozenset(nodes or (name,)), frozenset(types))


def test_layers_of_both_schemas_are_alike() -> None:
    old = {"Name": "c + r", "LayerType": "Conv", "Inputs": [{"Format/Datatype": "Row major linear FP16"}]}
    new = {
        "Name": "c + r",
        "LayerType": "Conv",
        "Inputs": [{"Format": "Row major linear format (kLINEAR)", "DataType": "Half"}],
        "Metadata": "[ONNX Layer: c]\u001e[ONNX Layer: r]",
    }
    first, second = (engine_layers(json.dumps({"Layers": [one]}))[0] for one in (old, new))
    assert first == second == EngineLayer("c + r", "Conv", frozenset({"c", "r"}), frozenset({"float16"}))


@pytest.mark.parametrize("text", ['{"Layers": ["names", "alone"]}', '{"Bindings": []}', "not JSON"])
def test_an_answer_without_layers_is_an_error(text: str) -> None:
    with pytest.raises(ArtifactError):
        engine_layers(text)


def test_reformats_and_fusions_neither_confirm_nor_refute() -> None:
    expected = {"a": "float16", "b": "float16", "c": "float16", "d": "float32"}
    layers = [
        layer("Reformatting CopyNode", "float16", kind="Reformat", nodes=("b",)),
        layer("a", "float16", "float32"),
        layer("{ForeignNode[b...c]}", "float32", kind="Myelin", nodes=("b", "c")),
        layer("d", "float16"),
    ]
    seen = compare_types(expected, layers)
    assert seen.confirmed == ("a",)
    assert seen.unseen == ("b", "c")
    assert seen.wrong == (("d", "float32", "float16"),)


def test_an_engine_that_shows_nothing_is_refused_unless_accepted() -> None:
    expected = {"a": "float16"}
    with pytest.raises(PrecisionMismatchError, match="shows no convolution"):
        check_types(expected, [layer("myl_1", "float16")], "fp16")
    assert check_types(expected, [], "fp16", accept_unseen=True).unseen == ("a",)


def test_a_float32_layer_left_on_purpose_is_no_mismatch() -> None:
    expected = {"a": "float16", "b": "float32"}
    assert check_types(expected, [layer("a", "float16"), layer("b", "float32")], "fp16").wrong == ()


def test_types_of_a_graph(tmp_path: Path) -> None:
    """A float16 product behind a cast, a quantized one, and one with a quantized weight alone."""
    weight = np.eye(4, dtype=np.float32)
    scale, zero = (
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w16"], ["y16"], name="half"),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["dw"]),
        helper.make_node("MatMul", ["dq", "dw"], ["y8"], name="int8"),
        helper.make_node("MatMul", ["y8", "dw"], ["out"], name="weight only"),
    ]
    graph = helper.make_graph(
        nodes,
        "types",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(weight.astype(np.float16), "w16"),
            numpy_helper.from_array(weight.astype(np.int8), "w8"),
            scale,
            zero,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    found = compute_types(tmp_path / "m.onnx")
    assert found == {"half": "float16", "int8": "int8", "weight only": "float32"}
