"""Which nodes of a graph float16 can't hold: by their values on calibration images and by their constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from compactmtl.config.precision import Fp16Config
from compactmtl.export.precision.files import element_types, float_activations, weights
from compactmtl.export.precision.half import rounded

LARGEST = 65504.0  # of float16
# What such an operator holds inside is larger than what goes in or comes out of it.
_SUMS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceL1", "CumSum"})
_SQUARES = frozenset(
    {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"}
    | {"MeanVarianceNormalization", "LpNormalization", "ReduceL2", "ReduceSumSquare", "LRN", "GlobalLpPool"}
)


def overflow_prone(
    model: onnx.ModelProto, largest: Mapping[str, float], config: Fp16Config
) -> dict[str, str]:
    """Nodes to keep in float32, with the reason: {node name: reason}.

    `largest` holds each activation's largest magnitude on calibration images. A node is kept where that, or what
    the node sums or squares inside, times `config.headroom` passes 65504; where a constant of it does; and where
    a single number that it takes, such as an ε, becomes 0.
    """
    graph = model.graph
    types, constants = element_types(graph), weights(graph)
    sizes = _sizes(graph)
    reasons: dict[str, str] = {}
    for node in graph.node:
        names = list(float_activations(node, types, set(constants)))
        magnitude = max((largest.get(name, 0.0) for name in names), default=0.0)
        inside, how = _inside(node, magnitude, sizes)
        if inside * config.headroom > LARGEST:
            reasons[node.name] = f"{how} {inside:.3g} on calibration images, {LARGEST:g} is the largest"
        elif reason := _constant(node, constants):
            reasons[node.name] = reason
    return reasons


def _inside(node: onnx.NodeProto, magnitude: float, sizes: Mapping[str, int]) -> tuple[float, str]:
    if node.op_type in _SQUARES:
        return max(magnitude, magnitude**2), "squares values up to"
    if node.op_type in _SUMS:
        count = sizes.get(node.input[0], 1) / max(sizes.get(node.output[0], 1), 1)
        if node.op_type == "AveragePool":
            kernel = next((list(one.ints) for one in node.attribute if one.name == "kernel_shape"), [1])
            count = float(np.prod(kernel))
        return magnitude * max(count, 1.0), "sums values up to"
    return magnitude, "holds values up to"


def _constant(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> str:
    for name in node.input:
        array = constants.get(name)
        if array is None or array.dtype != np.float32 or not array.size:
            continue
        finite = array[np.isfinite(array)]  # a mask of -inf stays one in float16
        if finite.size and float(np.abs(finite).max()) > LARGEST:
            return f"constant {name} holds {float(np.abs(finite).max()):.3g}"
        if array.size == 1 and array.reshape(-1)[0] != 0 and rounded(array, "fp16").reshape(-1)[0] == 0:
            return f"constant {name} is {float(array.reshape(-1)[0]):.3g}, which becomes 0"
    return ""


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Number of elements of each tensor; a free dimension counts as 1."""
    return {
        value.name: int(np.prod([max(size.dim_value, 1) for size in value.type.tensor_type.shape.dim]))
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
