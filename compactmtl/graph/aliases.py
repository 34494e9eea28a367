"""In-place calls made readable: later readers see the call's result; what cannot be followed is named."""

from __future__ import annotations

from typing import Any

from torch import fx

# These return their input itself in eval mode although their schema does not say so.
_IDENTITIES = {
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::contiguous",
    "aten::to",
}


def _aliases_first_argument(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return "getitem" in str(node.target)
    return schema.name in _IDENTITIES or any(a.alias_info is not None for a in schema.arguments[:1])


def is_mutation(node: fx.Node) -> bool:
    """Whether the call writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that the call writes into: its first argument, or what is given as `out`."""
    if node.op != "call_function" or not is_mutation(node):
        return []
    targets: list[Any] = []
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            targets += value if isinstance(value, (list, tuple)) else [value]
    return [item for item in targets if isinstance(item, fx.Node)]


def may_be_written(node: fx.Node) -> bool:
    """Whether a call writes into a tensor, or into a view of it, once it is there."""
    return any(
        node in written(user)
        or (
            bool(user.args)
            and user.args[0] is node
            and _aliases_first_argument(user)
            and may_be_written(user)
        )
        for user in node.users
        if user.op == "call_function"
    )


def writes_elsewhere(node: fx.Node) -> bool:
    """Whether the call writes into another tensor than the one that it works on."""
    return any(target is not node.args[0] for target in written(node))


def resolve_mutations(graph: fx.Graph) -> set[fx.Node]:
    """Rewire readers of a mutated tensor to the mutating call.

    Returns the tensors whose contents a write through another name changes: nothing may be assumed of them.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        first = node.args[0] if node.op == "call_function" and node.args else None
        targets = written(node)
        if targets:
            root[node] = root[targets[0]]
        else:
            aliased = isinstance(first, fx.Node) and _aliases_first_argument(node)
            root[node] = root[first] if aliased else node  # type: ignore[index]
        members.setdefault(root[node], []).append(node)

    hazards: set[fx.Node] = set()
    for call in graph.nodes:
        for mutated in written(call):  # read anew: an earlier call may have taken its place
            for user in [user for user in mutated.users if order[user] > order[call]]:
                user.replace_input_with(mutated, call)
            for other in members[root[mutated]]:
                read_later = any(order[user] > order[call] for user in other.users)
                if other not in (mutated, call) and order[other] < order[call] and read_later:
                    hazards.update(members[root[mutated]])
            if root[mutated].op == "placeholder":
                hazards.update(members[root[mutated]])
    return hazards
