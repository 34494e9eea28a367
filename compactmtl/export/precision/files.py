"""ONNX graphs in memory: load with types inferred, unique node names, save with or without external data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compactmtl.backends.model_file import data_file
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 2**31 - 2**20  # protobuf's limit is 2 GB; a margin for what is written beside the weights


def load_inferred(path: Path) -> onnx.ModelProto:
    """The model with its weights, the type and shape of every tensor it can infer, and a name for every node."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".inferred.") as folder:
        # By path: a model of more than 2 GB can't be inferred in memory.
        inferred = Path(folder) / path.name
        onnx.shape_inference.infer_shapes_path(str(path), str(inferred))
        model = onnx.load(inferred, load_external_data=False)
    onnx.load_external_data_for_model(model, str(path.parent))
    fill_node_names(model.graph)
    return model


def fill_node_names(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own; a name that is there and unique stays."""
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)


def save(model: onnx.ModelProto, path: Path, external: bool | None = None) -> None:
    """Write the model; its weights beside it in `<name>.data` where they lay there, or don't fit into one file.

    `external` True writes them beside it anyhow, False forbids it: then ConfigError is raised where they don't fit.
    Tensors below 1 KB stay in the model file, for shapes are inferred from them.
    """
    beside = data_file(path)
    size = _weight_bytes(model)
    if external is False and size > LARGEST:
        raise ConfigError(
            f"onnx.external_data is never, and {size / 1e9:.1f} GB of weights don't fit into one ONNX file",
            "set onnx.external_data to auto",
        )
    if external is None:
        external = beside.exists() or size > LARGEST
    beside.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=external, location=beside.name if external else None)


def _weight_bytes(model: onnx.ModelProto) -> int:
    """Of the initializers; ByteSize would serialize the model, which fails beyond 2 GB."""
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in model.graph.initializer)


def element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The ONNX element type of every tensor whose type is known."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def weights(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """Initializers by name as arrays."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, so that a pass has one kind of constant to look at."""
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        array = _constant(node)
        if array is None:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _constant(node: onnx.NodeProto) -> NDArray[np.generic] | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return None


def float_activations(node: onnx.NodeProto, types: dict[str, int], constant: set[str]) -> Iterator[str]:
    """The node's float32 inputs and outputs that are no constants."""
    for name in (*node.input, *node.output):
        if name and name not in constant and types.get(name) == onnx.TensorProto.FLOAT:
            yield name
