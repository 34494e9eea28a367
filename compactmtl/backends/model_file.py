"""A model file with the files that its weights lie in: beside it, by plain name, and nowhere else.

An ONNX file names them as paths, which a file from elsewhere may point at anything that its user can read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

_MEND = "export the model again, with its weights beside it"


def data_file(model: Path) -> Path:
    """Where the exporter puts weights that don't fit into the model file."""
    return model.with_name(f"{model.name}.data")


def model_files(model: Path) -> tuple[Path, ...]:
    """The model file and, where there is one, its data file."""
    return tuple(file for file in (model, data_file(model)) if file.exists())


def model_sha256(model: Path) -> str:
    """Of a model file together with its data file, read in pieces."""
    digest = hashlib.sha256()
    for file in model_files(model):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def external_files(path: Path) -> tuple[str, ...]:
    """Names of the files beside `path` that its weights lie in, sorted; empty where they are in the file itself.

    Raises ArtifactError where one lies in another folder, or is a link to there. A file that is no ONNX file has none:
    whoever opens it says what is wrong.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return ()
    folder = path.parent.resolve()
    names = set()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        # A plain name on every system: what Windows takes for a path is one here too.
        if not location or location in (".", "..") or PureWindowsPath(location).name != location:
            raise ArtifactError(
                f"{path}: tensor {tensor.name!r} has its values in {location!r}, which does not lie beside it",
                _MEND,
            )
        if (folder / location).resolve().parent != folder:
            raise ArtifactError(f"{path.parent / location} is a link out of the folder", _MEND)
        names.add(location)
    return tuple(sorted(names))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, those of attributes, of functions and of inner graphs too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for one in (*sparse, *attribute.sparse_tensors):
                yield from (one.values, one.indices)
            graphs = [attribute.g] if attribute.HasField("g") else []
            for inner in (*graphs, *attribute.graphs):
                yield from _graph_tensors(inner)
