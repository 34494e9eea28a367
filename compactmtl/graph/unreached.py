"""Modules that a trace did not reach, such as heads of other tasks or of training: what they may read keeps its width.

One trace shows one way through a forward. Others are looked for: the modules around those that were not reached in
training mode, then other values for the arguments that are no tensors. These ways are traced too, and the channels
that unreached modules share there stay. Of a module that no way leads to, every tensor stays that it may be given.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from compactmtl.errors import CompactError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.calls import stack_of
from compactmtl.graph.effect import Pin
from compactmtl.graph.inputs import Arguments, copied
from compactmtl.graph.questions import Questions
from compactmtl.graph.state import State
from compactmtl.graph.trace import Traced, trace

Unreached = Literal["keep", "report", "error"]
CHOICES: tuple[Unreached, ...] = ("keep", "report", "error")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_TRIES = 32  # runs with other arguments


def unreached_modules(model: nn.Module, traced: Traced) -> tuple[str, ...]:
    """The outermost modules none of whose parameters was read, and single parameters of modules that were read in part."""
    unread = set(traced.unread)
    read = [name for name, _ in model.named_parameters() if name not in unread]
    inhabited = {"", *(prefix for name in read for prefix in _ancestors(name))}
    paths: dict[str, None] = {}
    for name in traced.unread:
        outermost = next(path for path in (*_ancestors(name), name) if path not in inhabited)
        paths[outermost] = None
    return tuple(paths)


def _ancestors(name: str) -> list[str]:
    """The paths of the modules around a parameter or module, outermost first, the model itself left out."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def kept_for_unreached(
    model: nn.Module,
    arguments: Arguments,
    state: State,
    names: Sequence[str],
    analyse: Callable[[Traced, Arguments], State],
) -> list[Pin]:
    """Pins, in the `state` of what was reached, of all channels that the modules `names` may read or write."""
    pins: list[Pin] = []
    remaining = set(names)
    for other, training in _other_ways(model, arguments, names):
        if not remaining:
            return pins
        try:
            way = analyse(trace(model, other, training=training, every_stage=False), other)
        except CompactError:
            continue  # its modules stay among those that no way leads to
        reached = {name for name in remaining if not _all_unread(model, name, way.traced.unread)}
        if reached:
            pins += _shared(state, way, sorted(reached))
            remaining -= reached
    names_in_code = _names_in_code(model) if remaining else set[str]()
    for name in sorted(remaining):
        if _is_used(model, name, names_in_code):
            pins += _possible(model, Questions(state), name)
    return pins


def _all_unread(model: nn.Module, name: str, others: Sequence[str]) -> bool:
    unread = set(others)
    own = [key for key, _ in model.named_parameters() if key == name or key.startswith(f"{name}.")]
    return all(key in unread for key in own)


def _other_ways(
    model: nn.Module, arguments: Arguments, names: Sequence[str]
) -> Iterator[tuple[Arguments, list[str]]]:
    """Arguments, and modules in training mode, with which modules of `names` are called that were not before."""
    modules = dict(model.named_modules())
    around = sorted({"", *(path for name in names for path in _ancestors(name) if path in modules)})
    remaining = set(names)
    ways = [(arguments, around), *((other, list[str]()) for other in _other_arguments(model, arguments))]
    for other, training in ways[: 1 + _TRIES]:
        called = _called(model, other, training, [name for name in remaining if name in modules])
        if called or (training and any(name not in modules for name in remaining)):
            yield other, training
            remaining -= called


def _called(
    model: nn.Module, arguments: Arguments, training: Sequence[str], names: Iterable[str]
) -> set[str]:
    """Which of the modules `names`, or of those inside them, run; none where the model does not take it."""
    called = set[str]()
    with borrowed(model):
        for path in training:
            model.get_submodule(path).training = True
        for name in names:
            for module in model.get_submodule(name).modules():
                # The hooks go when the model is put back as it was.
                module.register_forward_pre_hook(lambda module, given, name=name: called.add(name))
        try:
            model(*copied(arguments))
        except Exception:
            return set()
    return called


def _other_arguments(model: nn.Module, arguments: Arguments) -> Iterator[Arguments]:
    """The arguments with another value for one of those that are no tensors, such as the name of a task."""
    defaults = [
        p.default for p in inspect.signature(model.forward).parameters.values() if p.kind in _POSITIONAL
    ]
    rest = defaults[len(arguments) :]
    if inspect.Parameter.empty in rest:
        rest = []
    leaves, spec = tree_flatten([*arguments, *rest])
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            continue
        for other in _other_values(model, leaf):
            changed = [*leaves[:position], other, *leaves[position + 1 :]]
            yield tuple(tree_unflatten(changed, spec))


def _other_values(model: nn.Module, value: object) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [other for other in range(8) if other != value]
    if isinstance(value, str):
        # Names that the model knows, and one that it does not: what remains where a forward compares.
        known = [leaf for module in model.modules() for leaf in module._modules if len(module._modules) < 64]
        named = [text for kind in {type(module) for module in model.modules()} for text in _strings(kind)]
        return [other for other in dict.fromkeys([*named, *known, "another value"]) if other != value]
    return [True, 0] if value is None else []


def _strings(kind: type) -> list[str]:
    """The strings in the code of a class's own forward."""
    code = getattr(vars(kind).get("forward"), "__code__", None)
    if kind.__module__.startswith("torch.") or not isinstance(code, types.CodeType):
        return []
    constants = [
        item
        for value in code.co_consts
        for item in (value if isinstance(value, (tuple, frozenset)) else [value])
    ]
    return [value for value in constants if isinstance(value, str) and len(value) < 64]


_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential, nn.ParameterDict, nn.ParameterList)
_BY_ANY_NAME = frozenset(("children", "named_children", "_modules", "__getattr__"))


def _names_in_code(model: nn.Module) -> set[str]:
    """What the methods of the model's classes name, but for those that build it; strings included."""
    names = set[str]()
    functions = [vars(module).get("forward") for module in model.modules()]  # one put there by hand
    for kind in {type(module) for module in model.modules()}:
        own = (getattr(kind, name, None) for name in dir(kind) if name != "__init__")
        functions += [
            item for item in own if not str(getattr(item, "__module__", "torch.")).startswith("torch.")
        ]
    pending: list[Any] = [
        getattr(inspect.unwrap(item), "__code__", None) for item in functions if callable(item)
    ]
    while pending:
        code = pending.pop()
        if isinstance(code, types.CodeType):
            names.update(code.co_names)
            pending += code.co_consts
        elif isinstance(code, str):
            names.add(code)
    return names


def _is_used(model: nn.Module, name: str, names_in_code: set[str]) -> bool:
    """Whether a method names it, or what holds it among others, so that a forward can lead there."""
    parts = name.split(".")
    while len(parts) > 1 and isinstance(model.get_submodule(".".join(parts[:-1])), _CONTAINERS):
        parts.pop()
    parent = model.get_submodule(".".join(parts[:-1]))
    of_torch = type(parent).__module__.startswith("torch.")
    return of_torch or parts[-1] in names_in_code or bool(names_in_code & _BY_ANY_NAME)


def _shared(state: State, other: State, reached: Sequence[str]) -> Iterator[Pin]:
    """Pins of what is in one class with a parameter that the trace did not read, or pinned, on the other way."""
    labels = other.space.classes()
    touched = np.zeros(int(labels.max()) + 1 if len(labels) else 0, dtype=bool)
    unread = set(state.traced.unread)
    touched[labels[other.space.pinned()]] = True
    for (name, _), binding in other.bindings.items():
        if name in unread:
            touched[labels[binding.ids]] = True
    reason = f"{', '.join(reached)}, which the trace did not reach, needs it"
    for key, binding in other.bindings.items():
        own = state.bindings.get(key)
        if own is not None and key[0] not in unread and own.ids.shape == binding.ids.shape:
            yield Pin(own.ids[touched[labels[binding.ids]]], reason)


def _possible(model: nn.Module, graph: Questions, name: str) -> Iterator[Pin]:
    """Pins of the tensors that pass through the module around an unreached one, of the widths that it takes where there are any."""
    stacks = {node: list(stack_of(node).values()) for node in graph.calls}
    called = {path for stack in stacks.values() for path in stack}
    parent = next((path for path in reversed(_ancestors(name)) if path in called), "")
    widths = {
        size
        for key, value in model.named_parameters()
        if key == name or key.startswith(f"{name}.")
        for size in value.shape
        if size > 1
    }
    passing = list(dict.fromkeys(_passing(graph, stacks, parent)))
    fitting = [node for node in passing if any(axis.ids.size in widths for axis in graph.layout(node))]
    for node in fitting or passing:
        for axis in graph.layout(node):
            yield Pin(axis.ids, f"{name}, which the trace did not reach, may need it")


def _passing(graph: Questions, stacks: dict[fx.Node, list[str]], parent: str) -> Iterator[fx.Node]:
    """Tensors that the forward of a module handles: what it is given, what its calls make, what its children return."""
    for node in graph.calls:
        place = _place(stacks[node], parent)
        if place is None:
            continue
        for source in graph.tensors_in(node):
            theirs = _place(stacks[source], parent) if source in stacks else None
            passes = place == "" or theirs != place
            if passes and graph.layout(source) and not graph.is_static(source):
                yield source
        if place == "" and graph.layout(node) and not graph.is_static(node):
            yield node


def _place(stack: Sequence[str], parent: str) -> str | None:
    """The child of `parent` in which a call lies, "" for its own forward and None outside of it."""
    if parent == "":
        inside = [path for path in stack if path]
        return inside[0] if inside else ""
    if parent not in stack:
        return None
    inside = list(stack[list(stack).index(parent) + 1 :])
    return inside[0] if inside else ""
