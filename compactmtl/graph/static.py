"""Calls whose result depends on parameters and numbers alone, and their values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from compactmtl.graph.aliases import is_mutation
from compactmtl.graph.trace import Traced

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


def static_values(traced: Traced) -> dict[fx.Node, Tensor]:
    """The value of every call that reads nothing but parameters, buffers, constants and other such calls."""
    values: dict[fx.Node, Tensor] = {}

    def given(node: fx.Node, copied: bool) -> Tensor:
        if node in traced.tensors:
            # A call may hand its argument on to be written into: the model's own tensors are not to be touched.
            return traced.tensors[node][1].clone()
        if node in values:
            return values[node].clone() if copied else values[node]
        made = node.meta["val"]  # what new_zeros and the like take their type from
        return torch.empty(0, dtype=made.dtype, device=made.device)

    with torch.no_grad():
        for node in traced.calls:
            inputs = node.all_input_nodes
            made = operator(node) in MADE and node not in traced.hazards
            if made or (inputs and all(source in traced.tensors or source in values for source in inputs)):
                args, kwargs = fx.node.map_arg(
                    (node.args, node.kwargs), partial(given, copied=is_mutation(node))
                )
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values
