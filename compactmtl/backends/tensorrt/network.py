"""What a parsed, strongly typed network computes in which type, layer by layer, held against the ONNX graph.

The builder keeps to the network's types, so this is known without a GPU. An engine's inspector needs one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compactmtl.backends.tensorrt.types import PrecisionMismatchError

if TYPE_CHECKING:
    import tensorrt as trt

CONVOLUTION, DECONVOLUTION, PRODUCT, EINSUM = "CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"
PRODUCTS = frozenset({CONVOLUTION, DECONVOLUTION, PRODUCT, EINSUM})
_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "FP8": "float8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
    "FP4": "float4",
    "INT4": "int4",
}


@dataclass(frozen=True)
class NetworkLayer:
    """One layer as parsed: its kind, its ONNX node, and numpy's names of the types that it touches.

    `multiplies` is the type of what a convolution or matrix product multiplies: int8 where all of that comes out of
    dequantizing layers, which the builder fuses into an int8 product. `reads` is the type of its input as it stands.
    """

    kind: str
    node: str
    types: frozenset[str]
    reads: str = ""
    multiplies: str = ""


def network_layers(network: trt.INetworkDefinition) -> tuple[NetworkLayer, ...]:
    """Every layer of a parsed network."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers: dict[str, trt.ILayer] = {}
    for layer in layers:
        for index in range(layer.num_outputs):
            makers[layer.get_output(index).name] = layer
    return tuple(_layer(layer, makers) for layer in layers)


def _layer(layer: trt.ILayer, makers: Mapping[str, trt.ILayer]) -> NetworkLayer:
    given = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
    made = [layer.get_output(index) for index in range(layer.num_outputs)]
    kind = layer.type.name
    types = frozenset(_name(tensor.dtype) for tensor in (*given, *made))
    match = re.search(r"\[ONNX Layer: ([^\]]+)\]", layer.metadata)
    node = match.group(1) if match else layer.name
    if kind not in PRODUCTS or not given:
        return NetworkLayer(kind, node, types)
    reads = _name(given[0].dtype)
    # A third input is a bias. A convolution with constant weights has them outside of its inputs.
    factors = [makers.get(tensor.name) for tensor in given[:2]]
    quantized = [_quantized(one, makers) for one in factors]
    alike = len(factors) == 2 and quantized[0] and quantized[0] == quantized[1]
    return NetworkLayer(kind, node, types, reads, quantized[0] if alike else reads)


def _quantized(layer: trt.ILayer | None, makers: Mapping[str, trt.ILayer]) -> str:
    """The type that a dequantizing layer reads; empty for any other.

    The parser puts a layer that only changes the shape behind it, where it multiplies tensors of different ranks.
    """
    while layer is not None and layer.type.name == "SHUFFLE":
        tensor = layer.get_input(0)
        layer = None if tensor is None else makers.get(tensor.name)
    if layer is None or layer.type.name != "DEQUANTIZE":
        return ""
    tensor = layer.get_input(0)
    return "" if tensor is None else _name(tensor.dtype)


def _name(kind: trt.DataType) -> str:
    return _NUMPY.get(kind.name, kind.name.lower())


def check_network(expected: Mapping[str, str], layers: tuple[NetworkLayer, ...]) -> str:
    """Hold the parsed layers against the type that the graph gives each convolution and matrix product, by its node.

    How many were found, in words. Raises PrecisionMismatchError where one has another type, or is not there.
    """
    found: dict[str, set[str]] = {}
    for layer in layers:
        if layer.multiplies:
            found.setdefault(layer.node, set()).add(layer.multiplies)
    for node, kind in expected.items():
        if node not in found:
            raise PrecisionMismatchError(
                f"the parsed network has no convolution or matrix product for node {node}",
                "the parser took that node for something else: report this with the TensorRT version",
            )
        if kind and found[node] != {kind}:
            raise PrecisionMismatchError(
                f"node {node} is {kind} in the graph and {', '.join(sorted(found[node]))} in the parsed network",
                "the parser did not keep to the graph's types: report this with the TensorRT version",
            )
    return f"{len(expected)} of {len(expected)} convolutions and matrix products parsed in the graph's type"
