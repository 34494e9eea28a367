"""What a model file computes, layer by layer: MACs, channels, and how much it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from compactmtl.backends.base import LayerTime
from compactmtl.errors import ArtifactError
from compactmtl.verify.result import GraphWork, LayerWork
from compactmtl.verify.steps import LAYERS, layer_name, places

_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}  # the input that a layer's weight is; else the second
_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
Shape = tuple[int, ...]


def graph_work(
    path: Path, arrays: Mapping[str, NDArray[Any]], times: Sequence[LayerTime], precision: str, step: int
) -> GraphWork:
    """The layers of an ONNX file run on `arrays`, and what each step of its profile is.

    `precision` is what its layers run in, `step` the multiple of channels that their kernels are written for. Raises
    ArtifactError where the file is no ONNX model or a layer's shape is not known before it runs.
    """
    if path.suffix.lower() != ".onnx":
        raise ArtifactError(
            f"{path} is no ONNX file: its layers' MACs are not known", "profile the .onnx file"
        )
    model = onnx.load(str(path), load_external_data=False)
    shapes = _shapes(model, {name: array.shape for name, array in arrays.items()})
    layers = tuple(_layer(node, shapes) for node in model.graph.node if node.op_type in LAYERS)
    return GraphWork(
        layers=layers,
        places=places(times, model.graph),
        channel_step=step,
        element_bytes=_SIZES.get(precision, 4),
    )


def _shapes(model: ModelProto, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every tensor that is known with inputs of these shapes."""
    for value in model.graph.input:
        if value.name in given:
            for dimension, size in zip(value.type.tensor_type.shape.dim, given[value.name], strict=True):
                dimension.dim_value = size
    for value in (
        *model.graph.output,
        *model.graph.value_info,
    ):  # as they were exported: the batch may be free there
        for dimension in value.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.Clear()
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            if all(one.HasField("dim_value") for one in sizes):
                shapes[value.name] = tuple(one.dim_value for one in sizes)
    return shapes


def _layer(node: NodeProto, shapes: Mapping[str, Shape]) -> LayerWork:
    data, weight, result = node.input[0], node.input[_WEIGHT.get(node.op_type, 1)], node.output[0]
    missing = [name for name in (data, weight, result) if name not in shapes]
    if missing:
        raise ArtifactError(
            f"the shape of '{missing[0]}', at layer {layer_name(node)}, is not known before the model runs",
            "export the model with fixed shapes",
        )
    read, kernel, written = shapes[data], shapes[weight], shapes[result]
    outputs, inputs, macs = _counts(node, read, kernel, written)
    return LayerWork(
        name=layer_name(node),
        operator=node.op_type,
        macs=macs,
        outputs=outputs,
        inputs=inputs,
        elements=math.prod(read) + math.prod(kernel) + math.prod(written),
    )


def _counts(node: NodeProto, read: Shape, kernel: Shape, written: Shape) -> tuple[int, int | None, int]:
    """Output channels, input channels (none: depthwise) and MACs."""
    if "Conv" in node.op_type:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        groups = given.get("group", 1) or 1
        positions = (
            read if node.op_type == "ConvTranspose" else written
        )  # at which the whole kernel is applied
        macs = positions[0] * math.prod(positions[2:]) * math.prod(kernel)
        return written[1], None if groups > 1 and groups == read[1] else read[1], macs
    contracted = read[0] if _transposed(node) else read[-1]
    return written[-1], contracted, math.prod(written) * contracted


def _transposed(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and any(one.name == "transA" and one.i for one in node.attribute)
