"""Name an exported graph's nodes after the modules they come from.

A runtime's profile, a list of layers left in float and TensorRT's inspector then speak of `encoder.layer1.0.conv1`, and
a layer has one name in the dense and in the compact file.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
WEIGHT = ".weight"


def name_nodes(graph: ir.Graph) -> None:
    """Rename nodes, and the values between them, in place; inputs, outputs and weights keep their names.

    A node with a module's weight has that module's name, any other the innermost module's it lies in and its
    operator's. An activation's value that only follows such a node has both names: runtimes name the fused step after
    its last value.
    """
    kept = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    names: Counter[str] = Counter()
    values: Counter[str] = Counter(str(name) for name in kept)
    weighted: dict[ir.Node, str] = {}
    for node in graph:
        module = _owner(node)
        if module:
            weighted[node] = module
        name = module or _scope(node)
        node.name = _unique(name, names)
        for output in node.outputs:
            if output.name not in kept:
                output.name = _unique(_after(node, weighted) or name, values)


def _owner(node: ir.Node) -> str:
    """The module whose weight the node takes; empty without one, and where others share it (equal weights are kept once)."""
    for value in node.inputs:
        if value is None or not value.is_initializer() or not str(value.name).endswith(WEIGHT):
            continue
        if len(value.uses()) == 1:
            return str(value.name).removesuffix(WEIGHT)
    return ""


def _scope(node: ir.Node) -> str:
    """The innermost module that the node was traced in, with its operator; the operator alone where none is noted."""
    try:
        scopes = [str(scope) for scope in ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))]
    except (SyntaxError, ValueError):
        scopes = []
    module = scopes[-2] if len(scopes) > 1 else ""  # the last is the operation's own
    return f"{module}.{node.op_type}" if module else node.op_type


def _after(node: ir.Node, weighted: dict[ir.Node, str]) -> str:
    """`conv+Relu` for a node that alone reads a weighted node's value, beside constants such as a `Clip`'s; else empty."""
    inputs = [value for value in node.inputs if value is not None and not _is_constant(value)]
    if (
        node in weighted
        or len(inputs) != 1
        or (producer := inputs[0].producer()) not in weighted
        or len(inputs[0].uses()) != 1
    ):
        return ""
    return f"{weighted[producer]}+{node.op_type}"


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _unique(name: str, taken: Counter[str]) -> str:
    """`name`, numbered from its second use on."""
    unique = name
    while taken[unique]:
        unique = f"{name}_{taken[name]}"
        taken[name] += 1
    taken[unique] += 1
    return unique
