"""A small convolutional ONNX file written by hand: what the precision passes and the backends are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 8
OUTPUTS = ("logits", "map")


def write_conv(
    path: Path, *, opset: int = 18, scale: float = 1.0, epsilon: float = 1e-3, width: int = 4
) -> Path:
    """image (batch, 3, 8, 8) to logits (batch, 5) and map (batch, width, 8, 8); the first filters times `scale`.

    stem -> relu -> body -> residual (+ relu) -> map / epsilon -> logits: the division keeps the logits' scale.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int, name: str) -> onnx.TensorProto:
        fan = int(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / fan**0.5).astype(np.float32), name)

    stem = np.multiply(
        numpy_helper.to_array(draw(width, 3, 3, 3, name="stem.weight")), scale, dtype=np.float32
    )
    weights = [
        numpy_helper.from_array(stem, "stem.weight"),
        draw(width, name="stem.bias"),
        draw(width, width, 3, 3, name="body.weight"),
        draw(5, width, name="head.weight"),
        draw(5, name="head.bias"),
        numpy_helper.from_array(np.array(epsilon, np.float32), "epsilon"),
    ]
    nodes = [
        helper.make_node(
            "Conv", ["image", "stem.weight", "stem.bias"], ["stem.out"], name="stem", pads=[1] * 4
        ),
        helper.make_node("Relu", ["stem.out"], ["stem.act"], name="relu"),
        helper.make_node("Conv", ["stem.act", "body.weight"], ["body.out"], name="body", pads=[1] * 4),
        helper.make_node("Add", ["body.out", "stem.act"], ["map"], name="residual"),
        helper.make_node("Add", ["map", "epsilon"], ["shifted"], name="shift"),
        helper.make_node("GlobalAveragePool", ["shifted"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], name="head", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", width, SIZE, SIZE]),
    ]
    graph = helper.make_graph(nodes, "conv", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def images(count: int = 4, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Images (count, 3, 8, 8)."""
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)
