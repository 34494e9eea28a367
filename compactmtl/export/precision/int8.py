"""Static int8 quantization of an ONNX file as Q/DQ pairs, by ONNX Runtime's quantizer and calibrated ranges."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx

from compactmtl.config.precision import Int8Config
from compactmtl.export.precision.files import element_types, save
from compactmtl.export.precision.ranges import quantization

# Operators that compute: each is one layer of the search, and can be left in float by name.
LAYERS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "Resize",
    "Concat",
)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that only move or bound values: quantized where what they read is.
MOVES = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "MaxPool",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Pad",
    "Split",
    "Slice",
)


def operators(config: Int8Config) -> list[str]:
    """The ONNX operators that are quantized: TensorRT wants pairs before its matrix products alone."""
    return list(WEIGHTED if config.layout == "inputs" else (*LAYERS, *MOVES))


def quantizable(model: onnx.ModelProto, config: Int8Config) -> dict[str, str]:
    """The layers of a graph that may be quantized: {node name: operator}, in the graph's order."""
    chosen = set(operators(config)) & set(LAYERS)
    types = element_types(model.graph)
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type in chosen
        and types.get(node.output[0]) == onnx.TensorProto.FLOAT
        and not {node.name, node.op_type} & set(config.exclude)
    }


def quantize(
    model: onnx.ModelProto,
    path: Path,
    config: Int8Config,
    ranges: Any,
    *,
    leave: Collection[str] = (),
    only: Collection[str] | None = None,
) -> None:
    """Write `model`, as `load_inferred` gives it, to `path` with Q/DQ pairs, but for the nodes in `leave`.

    `ranges` is what `calibrate` found. `only` quantizes these nodes and nothing else. The same input gives the
    same file.
    """
    tools = quantization()
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    excluded = [node.name for node in model.graph.node if {node.name, node.op_type} & set(config.exclude)]
    activation = tools.QuantType.QUInt8 if config.scheme == "u8s8" else tools.QuantType.QInt8
    plain = config.layout == "inputs"
    with quiet():
        quantizer = QDQQuantizer(
            copy,
            config.per_channel,
            bool(config.reduce_range),
            tools.QuantType.QInt8,
            activation,
            ranges,
            [] if only is None else list(only),  # of the quantizer's: empty means all
            [*excluded, *leave],
            operators(config),
            {
                "ActivationSymmetric": config.symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not plain,
                "OpTypesToExcludeOutputQuantization": list(WEIGHTED) if plain else [],
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # pairs come after the nodes that they stand before
    save(quantizer.model.model, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's quantizer advises on the root logger, once a node."""
    logger = logging.getLogger()
    former, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = former


def quantized_layers(model: onnx.ModelProto) -> dict[str, str]:
    """The weighted layers whose input comes out of a DequantizeLinear: {node name: operator}."""
    dequantized = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and set(node.input[:2]) <= dequantized
    }
