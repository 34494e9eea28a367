"""Residual branches: what is added to a tensor that goes around it, and the parameters whose zeros make it zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import Member, Role
from compactmtl.graph.space import Ids

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm")
# What makes zeros of zeros, of one tensor.
_ZERO_KEEPING = frozenset(
    (
        "dropout",
        "feature_dropout",
        "clone",
        "contiguous",
        "to",
        "detach",
        "alias",
        "roll",
        "slice",
        "constant_pad_nd",
        "relu",
        "gelu",
        "silu",
        "tanh",
        "leaky_relu",
        "hardswish",
        "elu",
        "relu6",
        "permute",
        "transpose",
        "movedim",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "unsqueeze",
        "squeeze",
    )
)


@dataclass(frozen=True)
class Branch:
    """One residual branch. With every slice of its `members` at zero it adds nothing.

    `calls` leave with it, all of whose results only it reads; so do the layers and the parameters of these names.
    """

    name: str  # of the layer or norm that ends it
    members: tuple[Member, ...]
    calls: frozenset[fx.Node]
    layers: frozenset[str]
    parameters: frozenset[str]

    @property
    def width(self) -> int:
        """Channels that it adds to."""
        return int(self.members[0].indices.shape[1])


def find_branches(graph: ChannelGraph) -> list[Branch]:
    """All branches of a traced model that layers lie in and that parameters of its end can switch off, in the order of their sums."""
    behind: dict[fx.Node, int] = {}  # each call and all that it depends on, a bit each
    for place, node in enumerate(graph.calls):
        own = 1 << place
        for source in node.all_input_nodes:
            own |= behind.get(source, 0)
        behind[node] = own
    found = []
    for node in graph.calls:
        sources = [node.args[place] for place in (0, 1)] if operator(node) == "add" else []
        if len(sources) < 2 or any(
            not isinstance(source, fx.Node) or source not in behind or graph.is_computed(source)
            for source in sources
        ):
            continue
        ends: list[tuple[int, Branch]] = []
        for end, other in (sources, sources[::-1]):
            assert isinstance(end, fx.Node) and isinstance(other, fx.Node)
            branch = _branch(graph, node, end, behind[end] & ~behind[other])
            if branch is not None:
                ends.append((len(branch.layers), branch))
        if len(ends) == 2:  # the longer way: the other one is the shortcut
            ends = [max(ends, key=lambda one: one[0])] if ends[0][0] != ends[1][0] else []
        found += [branch for _, branch in ends]
    return found


def _branch(graph: ChannelGraph, total: fx.Node, end: fx.Node, bits: int) -> Branch | None:
    calls = graph.calls
    only = {total}  # what is read by nothing else leaves
    for place in sorted(_places(bits), reverse=True):
        if all(user in only for user in calls[place].users):
            only.add(calls[place])
    own = frozenset(only - {total})
    if end not in own:
        return None
    layers = frozenset(product.name for product in graph.products if product.node in own)
    closed = _switch(graph, end, own)
    if not layers or closed is None:
        return None
    name, members = closed
    every = {call: graph.parameter(call) for inner in own for call in inner.all_input_nodes}
    parameters = frozenset(
        name
        for source, name in every.items()
        if name is not None and all(user in own for user in source.users)
    )
    if not {member.parameter for member in members} <= parameters:
        return None
    return Branch(name, members, own, layers, parameters)


def _places(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _switch(
    graph: ChannelGraph, end: fx.Node, own: frozenset[fx.Node]
) -> tuple[str, tuple[Member, ...]] | None:
    """The name of what ends a branch, and its parameters that make the branch zero when they are."""
    node: Any = end
    while node in own:
        name, given = operator(node), arguments(node)
        product = graph.product(node)
        if name in _NORMS:
            return _members(graph, [given["weight"], given["bias"]], "affine")
        if product is not None:
            if not product.rows or product.weight is None:
                return None
            names = [given["weight"]] + ([given["bias"]] if given.get("bias") is not None else [])
            return _members(graph, names, "producer")
        if name == "mul":
            one, other = node.args[0], node.args[1]
            static = (
                [value for value in (one, other) if graph.parameter(value) is not None]
                if isinstance(other, fx.Node)
                else []
            )
            if static:
                return _members(graph, static, "affine")
            if isinstance(other, fx.Node) and graph.shape(one) != graph.shape(node):
                one = other  # the other one is a gate
            node = one
        elif name in _ZERO_KEEPING:
            node = node.args[0]
        else:
            return None
    return None


def _members(graph: ChannelGraph, sources: list[Any], role: Role) -> tuple[str, tuple[Member, ...]] | None:
    """All slices of these parameters as one group."""
    members = []
    for source in sources:
        name = graph.parameter(source) if isinstance(source, fx.Node) else None
        if name is None:
            return None  # computed, or not there: then what it adds is not zero
        shape = graph.parameter_shape(name)
        dim = 0 if role == "producer" else int(np.argmax(shape)) if shape else -1
        if dim < 0:
            return None
        indices: Ids = np.arange(shape[dim], dtype=np.int64)[None]
        members.append(Member(name, dim, indices, role))
    return members[0].parameter.rpartition(".")[0], tuple(members)
