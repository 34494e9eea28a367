"""What TensorRT says of a model that it refuses, with the ONNX node that it means and how to mend it.

The parser names the node. The compiler names a node, one of its tensors, or neither; what is left out is found in the
graph. What to do follows from words that the real parser and builder use, which tests plant the faults for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import tensorrt as trt

LONGEST = 12  # lines of TensorRT's own that an error quotes
FEW = 3  # nodes that a message names
# What a machine without a driver adds to every other message, and what the parser repeats of itself.
_NOISE = re.compile(r"catchCudaError|--- (Begin|End) node|While parsing node number|ModelImporter\.cpp:151")
_QUANTIZED = (
    "one pair of QuantizeLinear and DequantizeLinear belongs in front of each input of a matrix product"
)
# The first whose words are in the message says how to mend it.
_MENDS: tuple[tuple[str, str], ...] = (
    (
        r"zero point",
        "TensorRT quantizes symmetrically and without unsigned types: int8.scheme: s8s8 and int8.symmetric: true",
    ),
    (
        r"has type Int32 but must have type",
        "TensorRT takes biases in float: int8.layout: inputs",
    ),
    (
        r"Int8.*(same type|same input types)|(same type|same input types).*Int8",
        f"{_QUANTIZED}: int8.layout: inputs",
    ),
    (
        r"has type UInt8|does not support UINT8",
        "TensorRT takes uint8 for an input and for a cast alone: cast it before all else",
    ),
    (
        r"same type|same input types|first input has type",
        "a strongly typed network casts nothing by itself: cast one of the inputs, or keep the node in float32 with"
        " fp16.keep_nodes or bf16.keep_nodes",
    ),
    (
        r"The current type = BF16|infer_type.*bf16",
        "this operator does not take bfloat16: keep it in float32 with bf16.keep_nodes or bf16.keep_ops",
    ),
    (
        r"Plugin not found|No importer|UNSUPPORTED_NODE\b.*check|unsupported operator",
        "TensorRT has no such operator: build the model with another one, or export at another onnx.opset",
    ),
    (
        r"import initializer|Size mismatch|offset/length out of range",
        "its weights are cut off or missing: export the model again, and copy the files beside it with it",
    ),
    (r"parse the ONNX model", "the file is no ONNX model or is cut off: export it again"),
    (
        r"isValidDims|add input to the network",
        "a dimension holds at most 2147483647: export at a smaller size",
    ),
    (r"workspace limit", "raise or remove workspace_mib"),
    (
        r"no optimization profile",
        "bound the free dimensions: shapes: {INPUT: {min: […], opt: […], max: […]}}",
    ),
    (
        r"Turing|HW-specific datatypes",
        "leave out that compute capability, or choose a precision that it has",
    ),
    (r"driver version is insufficient|status == CUDA_SUCCESS", "build on a machine with an NVIDIA GPU"),
)


def mend(text: str, otherwise: str) -> str:
    """How to mend what a message complains of."""
    return next(
        (hint for words, hint in _MENDS if re.search(words, text, re.IGNORECASE | re.DOTALL)), otherwise
    )


def parser_errors(parser: trt.OnnxParser) -> list[str]:
    """Each error with its node; where there is none, as of weights, without."""
    said = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name(), error.node_operator()
        where = f"node {name} ({operator}): " if name or operator else ""
        # An operator check that failed says `false` and no more.
        text = error.desc() if error.desc() != "false" else f"{operator} is an unsupported operator"
        said.append(where + "\n".join(lines(text.splitlines())))
    return said


def lines(said: Iterable[str]) -> list[str]:
    """Lines without what a machine without a driver adds to each, and without those that say the same again."""
    kept = [re.sub(r" In \w+ at /_src/\S+?(?=\)|$)", "", line) for line in said if not _NOISE.search(line)]
    return list(dict.fromkeys(kept))


def quoted(said: Sequence[str]) -> str:
    """The last lines, indented."""
    return "\n".join(f"  {line}" for line in lines(said)[-LONGEST:] or ["it gave no reason"])


def nodes_in(text: str, graph: onnx.GraphProto) -> list[str]:
    """The nodes that a message names, by their own name, by what they write or by a weight that they read.

    A weight's readers count only where nothing else is named: many a message lists what surrounds the fault.
    """
    words = set(re.findall(r"[\w./:+-]+", text))
    words |= {word.rstrip(".,:") for word in words} | {word.split("-(")[0] for word in words}
    words |= {word.rstrip("-") for word in words}
    named = [node for node in graph.node if node.name in words or words & set(node.output)]
    if not named:
        weights = {tensor.name for tensor in graph.initializer} & words
        named = [node for node in graph.node if weights & set(node.input)]
    return [f"{node.name or node.output[0]} ({node.op_type})" for node in named]


def located(text: str, graph: onnx.GraphProto | None) -> str:
    """The nodes that a message means as a line of its own; empty where none can be told, or all are in it already."""
    found = [] if graph is None else nodes_in(text, graph)
    if not found or all(f"node {name}" in text for name in found):
        return ""
    more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
    return f"\n  at {', '.join(found[:FEW])}{more}"
