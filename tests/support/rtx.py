"""Graphs for TensorRT's own parser and builder, which TensorRT for RTX brings without a GPU; sound, or with one fault."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compactmtl.backends import get_backend
from compactmtl.backends.tensorrt.build import Built, Job, build_engine
from compactmtl.backends.tensorrt_rtx.entry import TensorRTRtxBackend
from compactmtl.config.precision import Precision
from compactmtl.config.target import OnnxConfig, Target

ALL = (7.5, 8.0, 8.6, 8.9, 12.0)
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
WIDTH = 16
# Whatever multiplies, in the shapes that TensorRT takes it in: operator, input, weight, attributes.
PRODUCTS: dict[str, tuple[str, list[int], tuple[int, ...], dict[str, Any]]] = {
    "convolution": ("Conv", [1, WIDTH, 8, 8], (WIDTH, WIDTH, 3, 3), {"pads": [1, 1, 1, 1]}),
    "depthwise convolution": ("Conv", [1, WIDTH, 8, 8], (WIDTH, 1, 3, 3), {"group": WIDTH}),
    "transposed convolution": ("ConvTranspose", [1, WIDTH, 8, 8], (WIDTH, WIDTH, 2, 2), {"strides": [2, 2]}),
    "matrix product": ("MatMul", [1, WIDTH, WIDTH], (1, WIDTH, WIDTH), {}),
    "matrix product of two ranks": ("MatMul", [2, 4, WIDTH], (WIDTH, WIDTH), {}),
    "gemm": ("Gemm", [4, WIDTH], (WIDTH, WIDTH), {}),
    "einsum": ("Einsum", [4, WIDTH], (WIDTH, WIDTH), {"equation": "ij,jk->ik"}),
}


def has_wheels() -> bool:
    """Whether NVIDIA publishes TensorRT for RTX for this machine."""
    return sys.platform in ("linux", "win32") and platform.machine() in ("x86_64", "AMD64")


def rtx() -> TensorRTRtxBackend:
    """The backend. Skips where there are no wheels for the machine; fails where they are and aren't installed."""
    if not has_wheels():
        pytest.skip(f"no wheels of TensorRT for RTX for {sys.platform} on {platform.machine()}")
    backend = get_backend("tensorrt-rtx")
    assert isinstance(backend, TensorRTRtxBackend)
    return backend


def target(precision: Precision = "fp32", *compute: float, **options: Any) -> Target:
    """A target for some capabilities, 8.9 by default."""
    onnx_config = OnnxConfig(opset=22)
    return Target(backend="tensorrt-rtx", precision=precision, onnx=onnx_config).with_own(
        {"tensorrt_rtx": {"compute": list(compute or (8.9,)), **options}}
    )


def build(model: Path, chosen: Target) -> Built:
    """The engine of a file."""
    return rtx().build_here(model, chosen)


def build_unasked(model: Path, chosen: Target) -> Built:
    """The same, without asking first what the capabilities can do: the builder itself has to say."""
    job = rtx().job(chosen, None)
    return build_engine(model, Job(**{**vars(job), "check": lambda layers, model: None}), None)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: Sequence[int | str],
    *weights: onnx.TensorProto,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a graph from `x`, of a shape and a type, to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("custom", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def weight(name: str, shape: tuple[int, ...], kind: str = "fp32") -> onnx.TensorProto:
    """Noise of a type."""
    values: NDArray[np.float32] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return helper.make_tensor(name, TYPES[kind], shape, values.flatten().tolist())


def write_product(path: Path, what: str, kind: str) -> Path:
    """One of PRODUCTS as node `product`, in a type of TYPES, or between quantizing pairs of int8 or fp8."""
    operator, shape, size, attributes = PRODUCTS[what]
    nodes, weights = [], [weight("w", size, kind if kind in TYPES else "fp32")]
    first, second = "x", "w"
    if kind in ("fp16", "bf16"):
        nodes.append(helper.make_node("Cast", ["x"], ["cast"], name="cast", to=TYPES[kind]))
        first = "cast"
    elif kind != "fp32":
        zero = TensorProto.INT8 if kind == "int8" else TensorProto.FLOAT8E4M3FN
        weights += [helper.make_tensor("zero", zero, [], [0]), scalar("scale", 0.05)]
        for name in ("x", "w"):
            nodes += pair(name)
        first, second = "x.dq", "w.dq"
    inner = "inner" if kind in ("fp16", "bf16") else "y"
    nodes.append(helper.make_node(operator, [first, second], [inner], name="product", **attributes))
    if inner == "inner":
        nodes.append(helper.make_node("Cast", ["inner"], ["y"], name="back", to=TensorProto.FLOAT))
    return save(path, nodes, shape, *weights)


def pair(name: str) -> list[onnx.NodeProto]:
    """A quantizing and a dequantizing node behind a tensor, with `scale` and `zero`."""
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}.q"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.dq"], name=f"{name}.dequantize"
        ),
    ]


def scalar(name: str, value: float) -> onnx.TensorProto:
    """A float32 number."""
    return numpy_helper.from_array(np.array(value, np.float32), name)
