"""ONNX files that label pictures by their brightness, so that what a teacher says can be told from the picture alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEEP = 40.0  # of the logits: how fast a pixel becomes sure of its class


def write_brightness(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    classes: int = 3,
    after: str = "",
    channels: int = 3,
    names: Sequence[str] = ("segmentation", "weather", "height"),
    times: float = 100.0,
    steep: float = STEEP,
) -> Path:
    """image (batch, channels, H, W), of values in [0, 1], to a map of classes, a class of the picture, and a number.

    A pixel of brightness b, its first channel, has the logits `steep` (k b - k² / (2 (classes - 1))): the class k nearest to
    b (classes - 1). The picture's class is that of its mean brightness, and its number is `times` that. `after` is put
    behind the classes.
    """
    steps = np.arange(classes, dtype=np.float32)
    weight = np.zeros((classes, channels, 1, 1), np.float32)
    weight[:, 0, 0, 0] = steep * steps
    bias = (-steep * steps**2 / (2 * (classes - 1))).astype(np.float32)
    first = np.zeros((1, channels, 1, 1), np.float32)
    first[0, 0, 0, 0] = times
    weights = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(bias, "bias"),
        numpy_helper.from_array(first, "first"),
    ]
    maps, picture, number = names
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], ["logits"]),
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Conv", ["mean", "weight", "bias"], ["of mean"]),
        helper.make_node("Flatten", ["of mean"], ["picture"]),
        helper.make_node("Conv", ["mean", "first"], ["number map"]),
        helper.make_node("Flatten", ["number map"], [number]),
    ]
    types = [TensorProto.FLOAT, TensorProto.FLOAT]
    for inner, name in (("logits", maps), ("picture", picture)):
        if after == "ArgMax":
            nodes.append(helper.make_node("ArgMax", [inner], [name], axis=1, keepdims=0))
            types = [TensorProto.INT64, TensorProto.INT64]
        elif after:
            nodes.append(helper.make_node(after, [inner], [name], axis=1))
        else:
            nodes.append(helper.make_node("Identity", [inner], [name]))
    height, width = size or ("height", "width")
    shapes: list[list[str | int | None]] = [["batch", classes, height, width], ["batch", classes]]
    if after == "ArgMax":
        shapes = [["batch", height, width], ["batch"]]
    outputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip((maps, picture), types, shapes, strict=True)
    ]
    outputs.append(helper.make_tensor_value_info(number, TensorProto.FLOAT, ["batch", 1]))
    taken: list[str | int | None] = ["batch", channels, height, width]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, taken)]
    graph = helper.make_graph(nodes, "brightness", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def write_left(path: Path) -> Path:
    """image (batch, 3, H, W) to `depth` (batch, 1, H, W): the brightness of the pixel to the left, and a tenth.

    In the mirror it is that of the pixel to the right.
    """
    kernel = np.zeros((1, 3, 1, 3), np.float32)
    kernel[0, 0, 0, 0] = 1
    weights = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(np.full(1, 0.1, np.float32), "tenth"),
    ]
    node = helper.make_node("Conv", ["image", "kernel", "tenth"], ["depth"], pads=[0, 1, 0, 1])
    taken: list[str | int | None] = ["batch", 3, "height", "width"]
    given: list[str | int | None] = ["batch", 1, "height", "width"]
    graph = helper.make_graph(
        [node],
        "left",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, given)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
