"""Trace a model once, as a flat list of ATen calls whose parameters keep the model's own names."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from compactmtl.errors import SurgeryError
from compactmtl.graph.aliases import is_mutation, resolve_mutations, written
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.contexts import inline_contexts
from compactmtl.graph.generated import sources_forgotten
from compactmtl.graph.inputs import Arguments, as_arguments, copied, register_dataclasses
from compactmtl.graph.late import free_late_buffers
from compactmtl.graph.stages import FIRST, Export, Submodules, Tracing, first_line, non_strict
from compactmtl.graph.whole import Whole, taken_whole


@dataclass(frozen=True)
class Traced:
    """The undecomposed ATen graph of a model in eval mode.

    `tensors` maps each placeholder of a parameter, buffer or constant to its name and value. `hazards` are
    tensors that are written through another name: nothing may be assumed of them. `unowned` are tensors that no
    module of the model holds, such as those of layers in a plain list or in a closure: nothing can be cut of them.
    `unread` are the names of parameters that no call reads, `fractions` the floating-point numbers that modules hold as
    attributes, by path.
    """

    module: fx.GraphModule
    tensors: dict[fx.Node, tuple[str, Tensor]]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    hazards: frozenset[fx.Node] = frozenset()
    unowned: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    tracing: Tracing = field(default_factory=Tracing)
    wholes: tuple[Whole, ...] = ()
    fractions: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

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
        with torch.no_grad():
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


def check_model(model: nn.Module) -> None:
    """Raise SurgeryError where `model` is no module that can be followed or holds values that nothing can be said of."""
    check_form(model)
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


def check_form(model: nn.Module) -> None:
    """Raise SurgeryError where `model` is no module, or it or a part of it is in a form that is not followed."""
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"expected an nn.Module, found {type(model).__name__}", "pass the model itself")
    for path, module in model.named_modules():
        where = f"its module {path}" if path else "it"
        name = type(module).__name__
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise SurgeryError(
                f"{type(model).__name__} cannot be traced: {where} is wrapped for training on several processes",
                "pass model.module, the network inside the wrapper",
            )
        if name in ("FullyShardedDataParallel", "FSDPModule"):
            raise SurgeryError(
                f"{type(model).__name__} cannot be traced: {where} holds a part of its weights on each process ({name})",
                "gather the weights into the network itself, which is model.module, and pass that",
            )
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise SurgeryError(
                f"{type(model).__name__} cannot be traced: {where} is TorchScript, whose layers are out of reach",
                "pass the Python module that torch.jit.script or torch.jit.trace was given",
            )


def check_inputs(model: nn.Module, example_inputs: object) -> Arguments:
    """The arguments that the example inputs are, a list, tuple or dict. Raises SurgeryError where they are not what model(*example_inputs) takes."""
    if isinstance(example_inputs, Tensor):
        raise SurgeryError(
            "the example inputs have to be a list or tuple, found a Tensor",
            "pass (image,) for a model of one input",
        )
    return as_arguments(model, example_inputs)


def check_runs(model: nn.Module, arguments: Arguments) -> None:
    """Raise SurgeryError where the model does not run on its arguments; it is left as it was."""
    with borrowed(model):
        try:
            outputs = model(*copied(arguments))
        except Exception as error:
            raise SurgeryError(
                f"{type(model).__name__} does not run on its example inputs: {first_line(error)}",
                "pass example inputs that model(*example_inputs) accepts",
            ) from error
        register_dataclasses(outputs)


@contextmanager
def _operators_as_deployed() -> Iterator[None]:
    """Without torch's deterministic algorithms for a while.

    With them, bilinear resizing and some padding off the CPU are written out in indexing, of which no channel can be removed.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


class _NotTensors(SurgeryError):
    """A model that returns something other than tensors, which no way of tracing changes."""


@sources_forgotten()
def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    *,
    training: Sequence[str] = (),
    whole: Collection[str] = (),
    every_stage: bool = True,
) -> Traced:
    """Trace `model` in eval mode, in the stages of `compactmtl.graph.stages`. Raises SurgeryError where none gives a graph.

    The modules named in `training`, whose own forward alone is meant, are in training mode. Those of `whole` are taken whole
    from the start, where that serves. Without `every_stage` the first stage is the only one.
    """
    check_model(model)
    arguments = check_inputs(model, example_inputs)
    check_runs(model, arguments)  # a failure of its own is to be told from one of the tracer

    def traced(how: Export, wholes: Sequence[Whole] = ()) -> Traced:
        return _traced(model, arguments, training, how, wholes)

    inside: Submodules | None = None
    if whole:
        inside = Submodules(model, arguments, check_program)
        wholes = inside.wholes([path for path in whole if path in inside.called])
        if wholes:
            try:
                return _reported(traced(non_strict, wholes), "submodules", (), wholes)
            except SurgeryError:
                pass  # it has changed since: all stages again
    try:
        return traced(non_strict)
    except _NotTensors:
        raise
    except SurgeryError as error:
        if not every_stage:
            raise
        first = error
    failed = [("non-strict", _reason(first))]
    for name, how in FIRST[1:]:
        try:
            return _reported(traced(how), name, failed)
        except SurgeryError as error:
            failed.append((name, _reason(error)))
    inside = inside or Submodules(model, arguments, check_program)
    found = inside.smallest()
    if found:
        try:
            return _reported(traced(non_strict, found), "submodules", failed, found)
        except SurgeryError as error:
            inside.reason = _reason(error)
    raise SurgeryError(f"{first.message}; {inside.reason}", first.hint) from first


def _reported(
    traced: Traced, stage: str, failed: Sequence[tuple[str, str]], wholes: Sequence[Whole] = ()
) -> Traced:
    tracing = Tracing(stage, tuple(failed), {own.path: own.reason for own in wholes})
    return replace(traced, tracing=tracing, wholes=tuple(wholes))


def _reason(error: SurgeryError) -> str:
    return error.message if error.__cause__ is None else first_line(error.__cause__)


def _traced(
    model: nn.Module, arguments: Arguments, training: Sequence[str], how: Export, wholes: Sequence[Whole]
) -> Traced:
    """The graph of one stage, with these modules taken whole."""
    try:
        # The tracer runs on copies of the parameters without values.
        with borrowed(model), warnings.catch_warnings(), _operators_as_deployed():
            free_late_buffers(model)
            for name in training:
                model.get_submodule(name).training = True
            # Attributes that a forward assigns are its own affair: weight_norm puts its weight there.
            warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
            with taken_whole(model, wholes):
                program = how(model, arguments, {})
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} could not be traced: {first_line(error)}",
            "its forward may not branch on tensor values, and has to return tensors, or dicts or lists of them",
        ) from error
    return _read(model, program)


def _fractions(model: nn.Module) -> dict[str, tuple[float, ...]]:
    return {
        path: tuple(value for value in vars(module).values() if type(value) is float)
        for path, module in model.named_modules()
    }


def check_program(program: ExportedProgram) -> None:
    """Raise SurgeryError where the size of a tensor depends on values."""
    inline_contexts(program.graph_module)
    _drop_unread(program.graph_module.graph)
    _require_fixed_sizes("it", program.graph_module.graph)


def _read(model: nn.Module, program: ExportedProgram) -> Traced:
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
    unowned = set[str]()
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in names:
            name = names[node.name]
            tensors[node] = (name, state[name].detach())
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            name = signature.inputs_to_lifted_tensor_constants[node.name]
            constant = torch.as_tensor(program.constants[name])
            if not _holds(model, name):
                name = f"tensor {len(unowned)} of no module {tuple(constant.shape)}.value"
                unowned.add(name)
            tensors[node] = (name, constant)
        else:
            users.append(node)
    _drop_unread(module.graph)
    _require_fixed_sizes(type(model).__name__, module.graph)
    hazards = frozenset(resolve_mutations(module.graph))
    _drop_unread(module.graph, hazards)
    read = {tensors[node][0] for node in tensors if node.users}
    output = next(node for node in module.graph.nodes if node.op == "output")
    outputs = tuple(output.all_input_nodes)
    if not outputs or any(not isinstance(node.meta.get("val"), Tensor) for node in outputs):
        raise _NotTensors(
            f"{type(model).__name__} returns something other than tensors",
            "return tensors, or a dict or list of them",
        )
    known = {id(state[name]) for name in read if name in state}
    unread = tuple(name for name, value in model.named_parameters() if id(value) not in known)
    return Traced(
        module,
        tensors,
        tuple(users),
        outputs,
        hazards,
        frozenset(unowned),
        unread,
        fractions=_fractions(model),
    )


def _holds(model: nn.Module, name: str) -> bool:
    """Whether a module of the model has a tensor of this name as a plain attribute."""
    path, _, leaf = name.rpartition(".")
    try:
        return isinstance(vars(model.get_submodule(path)).get(leaf), Tensor)
    except AttributeError:
        return False


def _drop_unread(graph: fx.Graph, hazards: frozenset[fx.Node] | None = None) -> None:
    """Calls whose result nothing reads, such as checks of a type, say nothing of the channels.

    Once mutations are resolved, and their `hazards` known, neither do those whose tensor nothing reads under any name.
    """
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.users:
            continue
        if not is_mutation(node) or (hazards is not None and hazards.isdisjoint(written(node))):
            graph.erase_node(node)


def _require_fixed_sizes(name: str, graph: fx.Graph) -> None:
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(type(size) is int for size in value.shape):
            raise SurgeryError(
                f"{name} makes tensors whose size depends on values ({node.name}): it cannot be followed",
                "leave such steps, like the selection of boxes, to code outside the model",
            )
