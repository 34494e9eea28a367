"""Trace a model once, as a flat list of ATen calls whose parameters keep the model's own names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph.aliases import resolve_mutations


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

    def run(self, example_inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Any]]:
        """Yield every call with its value, freeing each value after its last use."""
        values: dict[fx.Node, Any] = {node: value for node, (_, value) in self.tensors.items()}
        values.update(zip(self.inputs, example_inputs, strict=True))
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
                value = node.target(*args, **kwargs)  # type: ignore[operator]
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


def trace(model: nn.Module, example_inputs: Sequence[Tensor]) -> Traced:
    """Trace `model` in eval mode. Raises SurgeryError where torch.export cannot."""
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"expected an nn.Module, found {type(model).__name__}", "pass the model itself")
    bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if bad:
        raise SurgeryError(
            f"parameter {bad[0]} holds values that are not finite"
            + (f" (and {len(bad) - 1} more)" * (len(bad) > 1)),
            "load a checkpoint from before training diverged",
        )
    inputs = tuple(example_inputs)
    try:
        with evaluating(model), torch.no_grad():
            program = torch.export.export(model, inputs, strict=False)
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} could not be traced: {type(error).__name__}: {str(error).splitlines()[0]}",
            "check that model(*example_inputs) runs in eval mode and does not branch on tensor values",
        ) from error
    module = program.graph_module
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
    hazards = frozenset(resolve_mutations(module.graph))
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = tuple(output.all_input_nodes)
    if not outputs or any(not isinstance(node.meta.get("val"), Tensor) for node in outputs):
        raise SurgeryError(
            f"{type(model).__name__} returns something other than tensors",
            "return tensors, or a dict or list of them",
        )
    return Traced(module, tensors, tuple(users), outputs, hazards)
