"""Which precision a model's layers really run in, held against the one that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.config.precision import Precision
from compactmtl.errors import MissingDependencyError

if TYPE_CHECKING:
    import onnx

# The layers that do the arithmetic: where these run in int8, the model does.
FLOAT_OPS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
INT8_OPS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "QLinearConvTranspose"}
)
_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 2: "int8", 3: "int8", 11: "fp64"}  # onnx.TensorProto.DataType


class PrecisionError(MissingDependencyError):
    """A backend that runs a model in another precision than the target asks for."""


def layer_precisions(graph: onnx.GraphProto, *, rewritten: bool = True) -> dict[str, int]:
    """How many layers with weights run in which precision, in a graph as the runtime has rewritten it.

    A layer between Q/DQ pairs that the runtime has left standing runs in float32. In a graph as it was exported
    (`rewritten` False) the pairs ask for int8, and that is what counts.
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in INT8_OPS:
            counts["int8"] += 1
        elif node.op_type in FLOAT_OPS and len(node.input) > 1:
            name = node.input[1]
            if name in types:
                counts[_TYPES.get(types[name], "other")] += 1
            elif name in made and made[name].op_type == "DequantizeLinear":
                counts["fp32" if rewritten else "int8"] += 1
            elif name in made and made[name].op_type == "Cast":
                counts[_TYPES.get(made[name].attribute[0].i, "other")] += 1
    return dict(counts)


def file_precision(path: Path) -> Precision:
    """The lowest precision that an ONNX file asks its runtime for; its weights are not read."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any(node.op_type in INT8_OPS | {"QuantizeLinear"} for node in graph.node):
        return "int8"
    types = {tensor.data_type for tensor in graph.initializer}
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def check_precision(layers: Mapping[str, int], asked: Precision, who: str) -> None:
    """Raise PrecisionError unless `who` runs the layers as asked.

    A float32 model must run in float32, or better, throughout; a lower precision may leave some layers in float32, which
    the caller counts, but not all of them. Where no layer with weights can be seen, only float32 is believed.
    """
    if not layers and asked == "fp32":
        return
    if not layers:
        raise PrecisionError(
            f"{asked} was asked for, and {who} shows no layer with weights to tell its precision by",
            "use fp32 for a model without such layers",
        )
    met = set(layers) <= {"fp32", "fp64"} if asked == "fp32" else layers.get(asked, 0) > 0
    if not met:
        raise PrecisionError(
            f"{asked} was asked for, {who} runs {show_layers(layers)}",
            "choose a target whose backend runs this precision on this machine; `compactmtl doctor` says what it has",
        )


def lowest_precision(layers: Mapping[str, int]) -> str:
    """The lowest precision that a layer runs in; empty where none is known."""
    return next((kind for kind in ("int8", "bf16", "fp16", "fp32", "fp64") if layers.get(kind)), "")


def show_layers(layers: Mapping[str, int]) -> str:
    """Counts in words, the most first: `17 layers in int8, 2 in fp32`."""
    ordered = sorted(layers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{count} {'layer' if count == 1 else 'layers'} in {name}" if index == 0 else f"{count} in {name}"
        for index, (name, count) in enumerate(ordered)
    )
