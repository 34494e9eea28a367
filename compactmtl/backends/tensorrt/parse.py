"""From an ONNX file to a strongly typed network; what the parser would take wrongly is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.backends.model_file import external_files
from compactmtl.backends.tensorrt.api import TensorRT
from compactmtl.backends.tensorrt.faults import located, mend, parser_errors, quoted
from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import onnx
    import tensorrt as trt

LONGEST_SIDE = 2**31 - 1


class EngineBuildError(ArtifactError):
    """A model that TensorRT can't parse, or build an engine of."""


def read_graph(model: Path) -> onnx.GraphProto | None:
    """The graph of a file without its external weights; None where it is no ONNX file, which the parser then says."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(model, load_external_data=False).graph
    except DecodeError:
        return None


def parse(
    api: TensorRT, label: str, builder: trt.Builder, logger: trt.ILogger, said: list[str], model: Path
) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    """The network, and the parser, which holds its weights and must live as long.

    `label` names the library in messages, `said` is what its log has heard. Raises EngineBuildError with the parser's own
    words, the node, and how to mend it.
    """
    external_files(model)  # raises where it would read what does not lie beside it
    graph = read_graph(model)
    if graph is not None:
        check_sizes(graph, model)
    # The flag's number differs between 10 and 11, where it is the only kind of network there is.
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = parser_errors(parser)
        text = quoted([line for error in errors for line in error.splitlines()])
        if not any(error.startswith("node ") for error in errors):
            text += "\n" + quoted(said)  # of weights and files the log says more than the error
        raise EngineBuildError(
            f"{label} can't parse {model}:\n{text}{located(text, graph)}",
            mend(text, "the message names the cause; an operator may be there at another onnx.opset"),
        )
    return network, parser


def check_sizes(graph: onnx.GraphProto, model: Path) -> None:
    """Raise EngineBuildError on a dimension that does not fit into 32 bits: the parser would cut it off, silently."""
    declared = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    declared |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for name, dims in declared.items():
        if any(size > LONGEST_SIDE for size in dims):
            readers = [node.name or node.output[0] for node in graph.node if name in node.input]
            at = f", which node {readers[0]} reads," if readers else ""
            raise EngineBuildError(
                f"{model}: tensor {name}{at} has shape {dims}; a dimension holds at most {LONGEST_SIDE}",
                "export at a smaller size",
            )
