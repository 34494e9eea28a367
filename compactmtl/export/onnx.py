"""A torch module as an ONNX file with explicit names, checked, with its provenance in the metadata."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from compactmtl.backends.model_file import data_file
from compactmtl.backends.torch.runner import named_outputs
from compactmtl.errors import ArtifactError
from compactmtl.export.naming import name_nodes
from compactmtl.graph.borrow import borrowed, trainable
from compactmtl.graph.copies import copy_model
from compactmtl.graph.generated import sources_forgotten
from compactmtl.graph.inputs import (
    Arguments,
    as_arguments,
    copied,
    map_tensors,
    register_dataclasses,
    tensors_in,
)
from compactmtl.graph.late import free_late_buffers
from compactmtl.graph.trace import check_form

if TYPE_CHECKING:
    import onnx

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Shape = tuple[int | str, ...]  # a free dimension is its name
BATCH = "batch"
SIZE = ("height", "width")
# Paths and source lines of the exporting machine: of no use to the runtime, and nobody else's business.
PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace",)


class ExportError(ArtifactError):
    """A model that can't be written as ONNX, or whose ONNX form isn't what was asked for."""


@trainable
def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = 18,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    size_dimensions: tuple[int, int] = (2, 3),
    metadata: Mapping[str, str] | None = None,
    external_data: bool | None = None,
) -> Path:
    """Write a model as an ONNX file and return its path.

    A copy of the model is exported in eval mode on the CPU. The model itself is left as it was.

    Args:
        model: a module that returns a tensor, or a flat dict, list or tuple of tensors.
        example_inputs: a tensor, positional arguments, or a mapping of keyword arguments, batch first. Arguments may be
            None, numbers, strings, and lists, dicts and dataclasses of tensors. Each tensor is an input of the file; all
            else is fixed as in the example. Shapes are fixed too, except for what is left free on request.
        path: the file. Weights above 2 GB, the limit of the format, are written to `<name>.data` beside it.
        input_names: by default the parameter names of `forward`. The name of a tensor in a list or dict ends in its
            position, as in `images_0` or `batch_depth`.
        output_names: by default the keys of a dict in the model's order, otherwise `output`, or `output_0` and so on.
        opset: ONNX operator set.
        dynamic_batch: leave dimension 0 of all inputs and outputs free, under the name `batch`.
        dynamic_size: leave height and width of all inputs and outputs free, under the names `height` and `width`, and
            expressions of them. The model must not use a fixed size inside.
        size_dimensions: the dimensions of height and width.
        metadata: texts that are kept in the file, such as hashes and versions.
        external_data: True writes the weights to their own file, False forbids it.

    Raises:
        ExportError: where the exporter fails, or where names, shapes or opset of the file are not as requested, or where
            ONNX's checker with shape inference rejects it.
    """
    path = Path(path)
    check_form(model)
    given = map_tensors(lambda tensor: tensor.detach().cpu(), as_arguments(model, example_inputs))
    if dynamic_batch:
        # torch.export takes sizes 0 and 1 for constants: a free batch must be traced with at least 2.
        given = map_tensors(_at_least_two, given)
    inputs = tuple(input_names) if input_names is not None else tensor_names(model, given)
    arguments = tuple(tensors_in(given))
    if len(inputs) != len(arguments):
        raise ExportError(
            f"{len(inputs)} input names for {len(arguments)} inputs", "give one name for each input"
        )
    module = copy_model(model).cpu().eval()
    if not all(isinstance(argument, Tensor) for argument in given):
        module = OfTensors(module, given)
    # A hook of the copy is the model's own: what it keeps is put back.
    with borrowed(model, evaluate=False, weights=False):
        outputs = _outputs(module, arguments, output_names, warm=not (dynamic_batch or dynamic_size))
    if clash := set(inputs) & set(outputs):
        raise ExportError(
            f"{sorted(clash)} name both an input and an output",
            "ONNX has one space of names: rename one of them",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Weights that lie beside the model are found by the file's name: write under the final name, then move.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        free = _free(arguments, dynamic_batch, size_dimensions if dynamic_size else None)
        asked = _Asked(dict(zip(inputs, arguments, strict=True)), outputs, opset, free)
        program = _traced(module, asked)
        program.model.metadata_props.update(dict(metadata or {}))
        program.save(written, external_data=external_data)
        _check_file(written, asked)
        _move(written, path)
    return path


@dataclass(frozen=True)
class _Asked:
    """What the file is to take and give."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    opset: int
    free: Mapping[int, str]  # dimensions of the inputs by name


class OfTensors(nn.Module):
    """A module that takes nested arguments as one that takes their tensors, all else being as in `example`."""

    def __init__(self, module: nn.Module, example: Arguments) -> None:
        super().__init__()
        self.module = module
        leaves, self._spec = tree_flatten(list(example))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.train(module.training)

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for index, tensor in zip(self._places, tensors, strict=True):
            leaves[index] = tensor
        return self.module(*tree_unflatten(leaves, self._spec))


def _outputs(
    module: nn.Module, arguments: tuple[Tensor, ...], names: Sequence[str] | None, warm: bool
) -> dict[str, Tensor]:
    """What the copy gives, by name. With `warm` it keeps what it makes for this size, such as anchors, as constants."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        nullcontext() if warm else borrowed(module, weights=False),
    ):
        outputs = module(*copied(arguments))
        register_dataclasses(outputs)
        return named_outputs(outputs, names)


def forward_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the first `count` positional parameters of the model's forward, filled up as input_<i>."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return (*names, *(f"input_{i}" for i in range(len(names), count)))


def tensor_names(model: nn.Module, arguments: Arguments) -> tuple[str, ...]:
    """A name for each tensor in the arguments of the model's forward: the parameter's, and its place inside."""
    names = []
    for name, argument in zip(forward_names(model, len(arguments)), arguments, strict=True):
        for path, leaf in tree_flatten_with_path(argument)[0]:
            if isinstance(leaf, Tensor):
                parts = [
                    str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
                ]
                names.append("_".join((name, *parts)))
    return tuple(names)


def model_tensors(path: Path) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Inputs and outputs of an ONNX file with their shapes, in its order; the weights are not read."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {value.name: _shape(value) for value in graph.input}, {
        value.name: _shape(value) for value in graph.output
    }


def tensor_dtypes(path: Path) -> dict[str, str]:
    """The dtype of each input and output of an ONNX file, as numpy names it."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        for value in (*graph.input, *graph.output)
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The strings that `export_onnx` kept in an ONNX file."""
    import onnx

    return {item.key: item.value for item in onnx.load(path, load_external_data=False).metadata_props}


def _free(arguments: tuple[Tensor, ...], dynamic_batch: bool, size: tuple[int, int] | None) -> dict[int, str]:
    """The free dimensions of the inputs by name; those of the size only where every input is an image."""
    free = {0: BATCH} if dynamic_batch else {}
    if size is not None:
        if any(argument.dim() != 4 for argument in arguments):
            raise ExportError("a free size needs inputs of 4 dimensions", "export with a static size")
        free |= dict(zip(size, SIZE, strict=True))
    return free


def _at_least_two(tensor: Tensor) -> Tensor:
    return tensor if not tensor.dim() or len(tensor) >= 2 else tensor.repeat(2, *[1] * (tensor.dim() - 1))


@sources_forgotten()
def _traced(module: nn.Module, asked: _Asked) -> torch.onnx.ONNXProgram:
    """The module as an ONNX graph in memory, with nodes named after its modules."""
    arguments, free = tuple(asked.inputs.values()), asked.free
    names = {index: torch.export.Dim(name) for index, name in free.items()}
    named = _named_arguments(module)
    shapes = _each(arguments, names, named) if free else None
    # A named size must hold for every number, and no network with a stride takes them all: the tracer finds the range.
    traced_free = {index: torch.export.Dim.DYNAMIC if index else name for index, name in names.items()}
    try:
        # Traced here, not by the exporter, which on failure tries other ways and prints pages about each.
        with borrowed(module, weights=False), warnings.catch_warnings():
            free_late_buffers(module)
            warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)  # as in graph.trace
            traced = torch.export.export(
                module,
                arguments,
                dynamic_shapes=_each(arguments, traced_free, named) if free else None,
                strict=False,
            )
            # Several inputs have one free batch, and it one name.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            program = torch.onnx.export(
                traced,
                dynamo=True,
                input_names=list(asked.inputs),
                output_names=list(asked.outputs),
                opset_version=asked.opset,
                dynamic_shapes=shapes,  # for the names of free dimensions
                verbose=False,
            )
    except Exception as error:  # torch's own errors of tracing and conversion, and those of the model's code
        raise ExportError(
            f"{type(module.module if isinstance(module, OfTensors) else module).__name__} can't be exported to ONNX: {_reason(error)}",
            "rewrite the operation it names, or export with a static batch and size",
        ) from error
    assert program is not None
    for node in program.model.graph:
        for key in PRIVATE_METADATA:
            node.metadata_props.pop(key, None)
    name_nodes(program.model.graph)
    return program


def _named_arguments(module: nn.Module) -> int | None:
    """How many arguments the forward takes before a `*rest`, which torch counts as one argument; None without one."""
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    rest = inspect.Parameter.VAR_POSITIONAL
    return kinds.index(rest) if rest in kinds else None


def _each(arguments: tuple[Tensor, ...], free: Mapping[int, Any], named: int | None) -> tuple[Any, ...]:
    """The free dimensions of every input that has them."""
    each = tuple({index: dim for index, dim in free.items() if index < tensor.dim()} for tensor in arguments)
    return each if named is None or len(each) <= named else (*each[:named], each[named:])


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        return lines[1].removeprefix("- ")[
            :300
        ]  # the first one; the line above only says that there are some
    return lines[0][:300] if lines else type(error).__name__


def _check_file(path: Path, asked: _Asked) -> None:
    """Hold the written file against what was asked."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"ONNX's checker refuses the exported model: {_reason(error)}", "try another opset"
        ) from error
    versions = {item.domain: item.version for item in onnx.load(path, load_external_data=False).opset_import}
    if versions.get("") != asked.opset:
        raise ExportError(
            f"the exporter wrote opset {versions.get('')}, {asked.opset} was asked for",
            "ask for an opset that this version of torch can write",
        )
    asked_in = {name: _expected(tensor, asked.free) for name, tensor in asked.inputs.items()}
    batch = {0: BATCH} if 0 in asked.free else {}
    asked_out = {name: _expected(tensor, batch) for name, tensor in asked.outputs.items()}
    written_in, written_out = model_tensors(path)
    if len(asked.free) > len(batch):  # how an output's size follows from the input's is the exporter's to say
        asked_out, written_out = (
            {name: _sizeless(shape) for name, shape in shapes.items()} for shapes in (asked_out, written_out)
        )
    for what, expected, written in (("inputs", asked_in, written_in), ("outputs", asked_out, written_out)):
        if list(expected.items()) != list(written.items()):
            raise ExportError(
                f"the exported model's {what} are {written}, asked for were {expected}",
                "an input that the model doesn't use is dropped, an output that doesn't depend on the batch"
                " can't have a free one: mend the model or its names",
            )


def _expected(tensor: Tensor, free: Mapping[int, str]) -> Shape:
    return tuple(free.get(index, size) for index, size in enumerate(tensor.shape))


def _sizeless(shape: Shape) -> Shape:
    """Batch and channels of a map (B, C, H, W) or vector (B, C); of a class map (B, H, W) the batch."""
    return (len(shape), *(shape[:1] if len(shape) == 3 else shape[:2]))


def _shape(value: onnx.ValueInfoProto) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_param if size.HasField("dim_param") else size.dim_value for size in sizes)


def _move(written: Path, path: Path) -> None:
    """Put the file at its place; its weights first, so that a model without them is never seen."""
    if data_file(written).exists():
        shutil.move(data_file(written), data_file(path))
        written.replace(path)
    else:
        written.replace(path)
        data_file(path).unlink(missing_ok=True)
