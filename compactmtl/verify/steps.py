"""What each step of a runtime's profile is: a layer's kernel, or something that the runtime runs beside the layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from onnx import GraphProto, NodeProto

from compactmtl.backends.base import LayerTime

# `kernel` computes a layer; `work` is all other work of the graph; `before` and `after` are what is outside all layers.
Kind = Literal["kernel", "layout", "precision", "resize", "work", "before", "after"]
LAYERS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
)
_KERNELS = ("conv", "gemm", "matmul", "fullyconnected", "innerproduct")  # in operators, as runtimes call them
_LAYOUT = ("reorder", "transpose")
_PRECISION = ("quantize", "quantizelinear", "dequantizelinear", "convert", "cast", "dequantize")
_RESIZE = ("resize", "upsample", "interpolate")
# What may follow a layer's name in the name of the step that runs it: `conv+Relu`, `conv_nchwc`, `conv_quant`, `fc.Add`.
_ENDS = ("", "+", "_", ".", "/")


def layer_of(step: str, names: Iterable[str]) -> str:
    """The layer whose name a step's name begins with, the longest; empty where there is none."""
    fitting = [name for name in names if step.startswith(name) and step[len(name) : len(name) + 1] in _ENDS]
    return max(fitting, key=len, default="")


def places(times: Sequence[LayerTime], graph: GraphProto) -> tuple[tuple[Kind, str], ...]:
    """Kind and layer of every step of a runtime that runs this graph, in the order of execution.

    Runtimes fuse nodes and name what they make after one of them, or after what it writes. A kernel with such a name runs
    the layer that the node is behind; one whose name says nothing runs the next layer that no other kernel runs. What
    else has no name in the graph belongs to the layer of the step before it.
    """
    owners, trailing = owners_of(graph)
    layers = [layer_name(node) for node in graph.node if node.op_type in LAYERS]
    found: list[tuple[Kind, str]] = []
    named = [layer_of(step.name, owners) for step in times]
    taken = {owners[name] for step, name in zip(times, named, strict=True) if name and _is_kernel(step)}
    free = [name for name in layers if name not in taken]
    first = next((index for index, step in enumerate(times) if _is_kernel(step)), 0)
    current = ""
    for index, (step, name) in enumerate(zip(times, named, strict=True)):
        kind = kind_of(step)
        if index < first:
            found.append(("before" if kind == "work" else kind, ""))
            continue
        if kind == "kernel":
            current = owners.get(name, "") or (free.pop(0) if free else current)
        elif owners.get(name):
            current = owners[name]
        if kind == "work" and name in trailing:
            kind = "after"
        found.append((kind, current))
    return tuple(found)


def layer_name(node: NodeProto) -> str:
    """What a layer is called: its node's name or, where it has none, that of what it writes."""
    return str(node.name or node.output[0])


def kind_of(step: LayerTime) -> Kind:
    """What a step does, by its operator and, where a runtime names all of these alike, by its own name."""
    operator, name = step.operator.lower(), step.name.lower()
    if operator.startswith(_PRECISION) or "fakequantize" in operator:
        return "precision"
    if _is_kernel(step):
        return "kernel"
    if any(word in operator for word in _LAYOUT):
        return "layout"
    if any(word in operator for word in _RESIZE):
        return "resize"
    if operator == "subgraph" and name.endswith(("quantizelinear", "dequantizelinear")):
        return "precision"
    return "work"


def _is_kernel(step: LayerTime) -> bool:
    operator = step.operator.lower()
    return any(word in operator for word in _KERNELS) and not operator.startswith(_PRECISION)


def owners_of(graph: GraphProto) -> tuple[dict[str, str], set[str]]:
    """For every node's name, and every tensor's, the layer that it comes from; and those that no layer comes after."""
    made: dict[str, tuple[int, str]] = {}  # tensor -> position and name of the last layer before it
    owners: dict[str, str] = {}
    for position, node in enumerate(graph.node):
        before = max((made[name] for name in node.input if name in made), default=(-1, ""))
        own = (position, layer_name(node)) if node.op_type in LAYERS else before
        for name in node.output:
            made[name] = own
            owners[name] = own[1]
        if node.name:
            owners[node.name] = own[1]
    read: set[str] = set()  # tensors that a layer reads, at last
    trailing: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in LAYERS or any(name in read for name in node.output):
            read.update(node.input)
        elif owners.get(layer_name(node)):
            trailing.update((node.name, *node.output))
    return owners, trailing
