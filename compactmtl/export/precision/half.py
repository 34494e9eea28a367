"""A float32 ONNX graph in float16 or bfloat16, node by node; what must not be lowered stays float32 between casts.

Which inputs and outputs of an operator may be lowered is read off ONNX's own schemas of the graph's opset, so one
pass serves both formats. Inputs and outputs of the graph keep their names and float32. Unlike converters that clip
weights into the range of float16, it changes no value: a node whose constants don't fit stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compactmtl.export.precision.files import (
    constants_to_initializers,
    element_types,
    fill_node_names,
)

HALF: dict[str, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TORCH: dict[int, torch.dtype] = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}
_SCHEMA_NAME: dict[int, str] = {
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}
# Operators whose output type is an attribute's, not their inputs', or that hold graphs of their own.
_FIXED = frozenset(
    {"Cast", "CastLike", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike", "Multinomial", "Bernoulli", "Range", "QuantizeLinear", "DequantizeLinear"}
    | {"DynamicQuantizeLinear", "If", "Loop", "Scan", "SequenceMap"}
)


def lower(model: onnx.ModelProto, precision: str, keep: Collection[str] = ()) -> tuple[str, ...]:
    """Bring `model`, whose types are inferred, to fp16 or bf16 in place, but for the nodes named in `keep`.

    Returns the names of the nodes that run in the lower precision.
    """
    graph = model.graph
    constants_to_initializers(graph)
    fill_node_names(graph)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    work = _Lowering(HALF[precision], opset, element_types(graph), keep)
    work.constants = {tensor.name: tensor for tensor in graph.initializer}
    work.outputs = {value.name for value in graph.output}
    for node in list(graph.node):
        work.rewrite(node)
    work.close(graph)
    return tuple(work.lowered)


def rounded(array: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    """The values as the lower precision holds them, in float32 again."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    return tensor.to(_TORCH[HALF[precision]]).float().numpy()


@dataclass
class _Lowering:
    dtype: int
    opset: int
    types: dict[str, int]
    keep: Collection[str]
    constants: dict[str, TensorProto] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    added: dict[str, TensorProto] = field(default_factory=dict)
    low: dict[str, str] = field(default_factory=dict)  # float32 tensor -> its lowered form
    produced: set[str] = field(default_factory=set)  # float32 tensors whose producer was lowered
    full: set[str] = field(default_factory=set)  # of those, the ones that a cast gives back
    lowered: list[str] = field(default_factory=list)

    def rewrite(self, node: onnx.NodeProto) -> None:
        """Copy the node with its inputs and outputs in the precision it runs in."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        slots = self._lowerable(node)
        for index, name in enumerate(node.input):
            if self.types.get(name) == TensorProto.FLOAT:
                copy.input[index] = self._lowered(name) if ("in", index) in slots else self._whole(name)
        self._subgraphs(copy)
        self.nodes.append(copy)
        if slots:
            self.lowered.append(node.name)
        for index, name in enumerate(node.output):
            if ("out", index) not in slots:
                continue
            self.low[name] = copy.output[index] = f"{name}_half"
            self.produced.add(name)
            if name in self.outputs:
                self._whole(name)

    def close(self, graph: onnx.GraphProto) -> None:
        """Put the rewritten nodes and constants into the graph."""
        used = {name for node in self.nodes for name in node.input} | self._captured()
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        constants = [tensor for name, tensor in self.constants.items() if name in used | self.outputs]
        del graph.initializer[:]
        graph.initializer.extend([*constants, *self.added.values()])

    def _lowerable(self, node: onnx.NodeProto) -> set[tuple[str, int]]:
        """The float32 inputs and outputs that may change; empty where the node stays in float32 as a whole."""
        if node.name in self.keep or node.op_type in _FIXED or node.domain not in ("", "ai.onnx"):
            return set()
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            return set()
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
        slots: set[tuple[str, int]] = set()
        for side, names, formals in (("in", node.input, schema.inputs), ("out", node.output, schema.outputs)):
            for index, name in enumerate(names):
                if self.types.get(name) != TensorProto.FLOAT:
                    continue
                formal = formals[min(index, len(formals) - 1)]
                if formal.type_str not in allowed:  # float32 by definition, such as the scales of Resize
                    if side == "out":
                        return set()
                elif _SCHEMA_NAME[self.dtype] in allowed[formal.type_str]:
                    slots.add((side, index))
                else:
                    return set()
        return slots

    def _lowered(self, name: str) -> str:
        if name not in self.low:
            self.low[name] = f"{name}_half"
            if name in self.constants:
                self.added[name] = self._constant(self.constants[name])
            else:
                self.nodes.append(self._cast(name, self.low[name], self.dtype))
        return self.low[name]

    def _whole(self, name: str) -> str:
        """The tensor in float32 under its own name: as it is, or cast back where its producer was lowered."""
        if name in self.produced and name not in self.full:
            self.full.add(name)
            self.nodes.append(self._cast(self.low[name], name, TensorProto.FLOAT))
        return name

    def _cast(self, source: str, result: str, to: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=to)

    def _constant(self, tensor: TensorProto) -> TensorProto:
        values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        half = values.to(_TORCH[self.dtype])
        raw = half.reshape(-1).view(torch.int16).numpy().tobytes()
        return helper.make_tensor(f"{tensor.name}_half", self.dtype, list(tensor.dims), raw, raw=True)

    def _subgraphs(self, node: onnx.NodeProto) -> None:
        """Graphs inside a node read outer tensors by name: give them the float32 form."""
        for name in _outer_reads(node):
            if self.types.get(name) == TensorProto.FLOAT:
                self._whole(name)

    def _captured(self) -> set[str]:
        return {name for node in self.nodes for name in _outer_reads(node)}


def _outer_reads(node: onnx.NodeProto) -> set[str]:
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names |= set(inner.input) | _outer_reads(inner)
    return names
