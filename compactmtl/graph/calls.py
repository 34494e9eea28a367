"""The calls of a traced graph: which operator, with which arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

# Tensors that a forward makes of numbers alone: new_* read no more of their argument than its type.
MADE = frozenset(
    (
        "zeros",
        "ones",
        "full",
        "arange",
        "linspace",
        "eye",
        "scalar_tensor",
        "new_zeros",
        "new_ones",
        "new_full",
    )
)


def operator(node: fx.Node) -> str:
    """The operator's plain name: `aten.relu_.default` and `aten.relu.default` are both `relu`."""
    schema = getattr(node.target, "_schema", None)
    text = schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))
    return str(text).removeprefix("aten::").rstrip("_") or str(text)


def overload(node: fx.Node) -> str:
    """The operator with its overload, `max.other`, where one name stands for different operators."""
    return f"{operator(node)}.{getattr(getattr(node.target, '_schema', None), 'overload_name', '')}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by the names of its schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)}
    values: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            values[argument.name] = node.kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value
    return values


def source_of(node: fx.Node) -> fx.Node:
    """The tensor that an operator of one tensor reads."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def stack_of(node: fx.Node) -> dict[str, str]:
    """The calls of modules around an operator, outermost first, with the paths of the modules."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return {call: entry[0] for call, entry in stack.items()}


def owner(node: fx.Node) -> str:
    """The path of the innermost module whose forward made this call."""
    return next(reversed(stack_of(node).values()), "")
