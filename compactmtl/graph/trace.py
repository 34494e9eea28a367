"""Trace a model once, as a flat list of ATen calls whose parameters keep the model's own names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from compactmtl.errors import SurgeryError
from compactmtl.graph.aliases import is_mutation, resolve_mutations
from compactmtl.graph.contexts import inline_contexts


@dataclass(frozen=True)
class Traced:
    """The undecomposed ATen graph of a model in eval mode.

    `tensors` maps each placeholder of a parameter, buffer or constant to its name and value. `hazards` are
    tensors that are written through another name: nothing may be assumed of them.
    """

    module: fx.GraphModule
    tensors: dict[fx.Node, tuple[str, Tensor]]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    hazards: frozenset[fx.Node] = frozenset()

    @property
    def calls(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "call_function"]

    def run(self, example_inputs: Sequence[Any]) -> Iterator[tuple[fx.Node, Any]]:
        """Yield every call with its value, freeing each value after its last use."""
        values: dict[fx.Node, Any] = {
            # What the graph writes into is copied: the model's own tensors are not to be touched.
            node: value.clone() if node in self.hazards else value
            for node, (_, value) in self.tensors.items()
        }
        given = zip(self.inputs, tree_leaves(list(example_inputs)), strict=True)
        values.update(
            (node, attrgetter(str(node.target))(self.module))
            for node in self.module.graph.nodes
            if node.op == "get_attr"
        )
        values.update((node, leaf.clone() if node in self.hazards else leaf) for node, leaf in given)
        nodes = self.calls
        last: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for used in node.all_input_nodes:
                last[used] = node
        dying: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            dying.setdefault(node, []).append(used)
        with torch.inference_mode():
            for node in nodes:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                try:
                    value = node.target(*args, **kwargs)  # type: ignore[operator]
                except Exception as error:
                    raise SurgeryError(
                        f"the traced graph does not run at {node.name}: {first_line(error)}",
                        "leave function transforms and code that depends on the tracer out of the forward",
                    ) from error
                values[node] = value
                yield node, value
                for used in dying.get(node, ()):
                    values.pop(used, None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, every module's own mode put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def check_model(model: nn.Module) -> None:
    """Raise SurgeryError where `model` is no module or holds values that nothing can be said of."""
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"expected an nn.Module, found {type(model).__name__}", "pass the model itself")
    # A buffer may hold infinities on purpose, such as an attention mask.
    named = [
        *((f"parameter {name}", value, torch.isfinite) for name, value in model.named_parameters()),
        *((f"buffer {name}", value, lambda v: ~torch.isnan(v)) for name, value in model.named_buffers()),
    ]
    bad = []
    for name, value, fine in named:
        if value.is_meta or is_lazy(value):
            raise SurgeryError(
                f"{name} has no values yet",
                "build the model on a real device, load its weights, and run lazy layers once",
            )
        if not fine(value).all():
            bad.append(name)
    if bad:
        raise SurgeryError(
            f"{bad[0]} holds values that are not finite" + (f" (and {len(bad) - 1} more)" * (len(bad) > 1)),
            "load a checkpoint from before training diverged",
        )


def check_inputs(example_inputs: Sequence[Any]) -> None:
    """Raise SurgeryError where the example inputs are not what model(*example_inputs) takes."""
    if not isinstance(example_inputs, (list, tuple)):
        kind = type(example_inputs).__name__
        raise SurgeryError(
            f"the example inputs have to be a list or tuple, found a {kind}",
            "pass (image,) for a model of one input",
        )
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(list(example_inputs))):
        raise SurgeryError("the example inputs hold no tensor", "pass what model(*example_inputs) takes")


def trace(model: nn.Module, example_inputs: Sequence[Any]) -> Traced:
    """Trace `model` in eval mode. Raises SurgeryError where torch.export cannot."""
    check_model(model)
    check_inputs(example_inputs)
    try:
        with evaluating(model), torch.no_grad(), warnings.catch_warnings():
            # Attributes that a forward assigns are its own affair: weight_norm puts its weight there.
            warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
            program = torch.export.export(model, tuple(example_inputs), strict=False)
    except Exception as error:
        raise _explained(model, example_inputs, error) from error
    module = program.graph_module
    inline_contexts(module)
    signature = program.graph_signature
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[fx.Node, tuple[str, Tensor]] = {}
    users: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in names:
            name = names[node.name]
            tensors[node] = (name, state[name].detach())
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            name = signature.inputs_to_lifted_tensor_constants[node.name]
            constant = program.constants[name]
            tensors[node] = (name, constant if isinstance(constant, Tensor) else torch.as_tensor(constant))
        else:
            users.append(node)
    _drop_unread(module.graph)
    _require_fixed_sizes(model, module.graph)
    hazards = frozenset(resolve_mutations(module.graph))
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = tuple(output.all_input_nodes)
    if not outputs or any(not isinstance(node.meta.get("val"), Tensor) for node in outputs):
        raise SurgeryError(
            f"{type(model).__name__} returns something other than tensors",
            "return tensors, or a dict or list of them",
        )
    return Traced(module, tensors, tuple(users), outputs, hazards)


def _drop_unread(graph: fx.Graph) -> None:
    """Calls whose result nothing reads, such as checks of a type, say nothing of the channels."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not is_mutation(node):
            graph.erase_node(node)


def _require_fixed_sizes(model: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(type(size) is int for size in value.shape):
            raise SurgeryError(
                f"{type(model).__name__} makes tensors whose size depends on values ({node.name}): "
                "it cannot be followed",
                "leave such steps, like the selection of boxes, to code outside the model",
            )


def _explained(model: nn.Module, example_inputs: Sequence[Any], error: Exception) -> SurgeryError:
    """Whether the model does not run at all on its inputs, or runs and cannot be traced."""
    name = type(model).__name__
    try:
        with evaluating(model), torch.no_grad():
            model(*example_inputs)
    except Exception as own:
        return SurgeryError(
            f"{name} does not run on its example inputs: {first_line(own)}",
            "pass example inputs that model(*example_inputs) accepts",
        )
    return SurgeryError(
        f"{name} could not be traced: {first_line(error)}",
        "its forward may not branch on tensor values, and has to return tensors, or dicts or lists of them",
    )


def first_line(error: Exception) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
