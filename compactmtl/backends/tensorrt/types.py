"""The types that an engine's layers really have, read from its inspector and held against the graph's.

A network that is strongly typed takes its types from the ONNX graph. That the builder kept to them is not taken on
trust: each convolution and matrix product of the graph is looked up in the engine by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}
# TensorRT 10 writes "Format/Datatype", such as "Row major linear FP32" or "Half"; 11 splits off the type.
_TYPE_KEYS = ("DataType", "Datatype", "Data Type", "Format/Datatype", "Format/DataType", "Format")
_TYPES = (
    ("bfloat16", r"\b(bf16|bfloat16|bfloat)\b"),
    ("float16", r"\b(fp16|half|float16)\b"),
    ("float32", r"\b(fp32|float|float32)\b"),
    ("int8", r"\bint8\b"),
    ("float8", r"\b(fp8|float8\w*)\b"),
    ("int32", r"\bint32\b"),
    ("int64", r"\bint64\b"),
    ("bool", r"\bbool\b"),
)


class PrecisionMismatchError(ArtifactError):
    """An engine whose layers don't run in the precision that was asked for."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: its kind, the ONNX nodes in it, and the types that it touches."""

    name: str
    kind: str
    nodes: frozenset[str]
    types: frozenset[str]  # numpy's names, of inputs, outputs and weights


@dataclass(frozen=True)
class TypesSeen:
    """The compute nodes of a graph by what the engine shows of them."""

    confirmed: tuple[str, ...]
    wrong: tuple[tuple[str, str, str], ...]  # node, type in the graph, types in the engine
    unseen: tuple[str, ...]  # fused with others into a layer that doesn't tell, or under another name

    @property
    def text(self) -> str:
        """In words."""
        total = len(self.confirmed) + len(self.wrong) + len(self.unseen)
        return f"{len(self.confirmed)} of {total} convolutions and matrix products seen in the graph's type"


def engine_layers(inspector_json: str) -> tuple[EngineLayer, ...]:
    """The layers that an engine inspector lists as JSON. Raises ArtifactError where it lists names alone."""
    try:
        content: Any = json.loads(inspector_json)
        layers = content["Layers"]
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"the engine inspector's answer has no layers: {error}", "report this as a bug"
        ) from error
    if layers and not isinstance(layers[0], Mapping):
        raise ArtifactError(
            "the engine was built without detailed profiling verbosity: its inspector shows names alone",
            "build it with `compactmtl export RUN --target NAME`",
        )
    return tuple(_layer(one) for one in layers)


def _layer(layer: Mapping[str, Any]) -> EngineLayer:
    tensors = [*(layer.get("Inputs") or ()), *(layer.get("Outputs") or ())]
    types = {kind for tensor in tensors if isinstance(tensor, Mapping) and (kind := _tensor_type(tensor))}
    weights = layer.get("Weights")
    if (
        isinstance(weights, Mapping)
        and weights.get("Count")
        and (kind := type_name(str(weights.get("Type"))))
    ):
        types.add(kind)
    name, metadata = str(layer.get("Name", "")), str(layer.get("Metadata", ""))
    nodes = {
        *re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata),
        *re.split(r" \+ |\{ForeignNode\[|\.\.\.|\]\}", name),
    }
    return EngineLayer(name, str(layer.get("LayerType", "")), frozenset(nodes - {""}), frozenset(types))


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    return next((kind for key in _TYPE_KEYS if key in tensor and (kind := type_name(str(tensor[key])))), "")


def type_name(text: str) -> str:
    """numpy's name of the type that a description of TensorRT's names; empty where it names none."""
    return next((name for name, pattern in _TYPES if re.search(pattern, text.lower())), "")


def compute_types(model: Path) -> dict[str, str]:
    """Type of the data that each convolution and matrix product of an ONNX file multiplies, by the node's name.

    int8 where that comes out of a DequantizeLinear, which the runtime fuses into an int8 product.
    """
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(loaded)
    graph = inferred.graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    return {
        node.name: _multiplied(node, types, makers)
        for node in graph.node
        if node.op_type in COMPUTE and node.name
    }


def _multiplied(node: onnx.NodeProto, types: Mapping[str, int], makers: Mapping[str, onnx.NodeProto]) -> str:
    import onnx

    made = [makers.get(name) for name in node.input[:2]]
    if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in made):
        stored = {types.get(maker.input[0], 0) for maker in made if maker is not None}
        eights = {kind for kind in stored if onnx.TensorProto.DataType.Name(kind).startswith("FLOAT8")}
        return "float8" if eights and eights == stored else "int8"
    kinds = [types[name] for name in (node.input[1], node.input[0]) if types.get(name)]
    if not kinds:
        return ""
    name = onnx.TensorProto.DataType.Name(kinds[0]).lower()
    return "float32" if name == "float" else name


def compare_types(expected: Mapping[str, str], layers: Sequence[EngineLayer]) -> TypesSeen:
    """Each compute node against the engine's layer that holds it.

    A layer that holds several compute nodes shows the types at its edge alone: it neither confirms nor refutes.
    """
    confirmed, wrong, unseen = [], [], []
    for node, kind in expected.items():
        holders = [layer for layer in layers if node in layer.nodes and "reformat" not in layer.kind.lower()]
        alone = [layer for layer in holders if len(layer.nodes & expected.keys()) == 1 and layer.types]
        if any(kind in layer.types for layer in alone):
            confirmed.append(node)
        elif alone:
            wrong.append((node, kind, ", ".join(sorted(set().union(*(layer.types for layer in alone))))))
        else:
            unseen.append(node)
    return TypesSeen(tuple(confirmed), tuple(wrong), tuple(unseen))


def check_types(
    expected: Mapping[str, str], layers: Sequence[EngineLayer], precision: str, *, accept_unseen: bool = False
) -> TypesSeen:
    """Hold an engine's layers against the graph and the asked precision.

    Raises PrecisionMismatchError where the graph has no compute node of that precision, where a layer has another
    type than the graph gives it, and, unless accepted, where no layer of that precision can be seen.
    """
    asked = [node for node, kind in expected.items() if PRECISIONS.get(kind) == precision]
    if expected and not asked:
        kinds = ", ".join(sorted(set(expected.values())))
        raise PrecisionMismatchError(
            f"{precision} was asked for, and all convolutions and matrix products of the graph are {kinds}",
            "export again, so that the graph gets its precision",
        )
    comparison = compare_types(expected, layers)
    if comparison.wrong:
        node, want, have = comparison.wrong[0]
        raise PrecisionMismatchError(
            f"{len(comparison.wrong)} layers of the engine have another type than the graph gives them: {node} is {want}"
            f" in the graph and touches {have} in the engine",
            "the builder did not keep to the graph's types: report this with the TensorRT version",
        )
    if asked and not set(asked) & set(comparison.confirmed) and not accept_unseen:
        raise PrecisionMismatchError(
            f"{precision} was asked for, and the engine's inspector shows no convolution or matrix product in it",
            "tensorrt.unseen_types: accept takes the engine all the same; its types are then the graph's word alone",
        )
    return comparison
