"""Heads of attention as channel groups: queries, keys and values of one head go together, or not at all."""

from __future__ import annotations

import numpy as np

from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import GroupFamily
from compactmtl.graph.space import Ids


def attention_heads(graph: ChannelGraph) -> list[tuple[GroupFamily, Ids]]:
    """One family of whole heads for each attention that can lose some, with the head of every class (see `owners`).

    Attention counts here where it is scaled dot product attention whose queries and values are split into heads in
    the same way. Heads of which a coordinate can never go are left out.
    """
    families = []
    stays = graph.fixed.copy()
    for unit in _heads(graph):
        owner = np.full(graph.classes, -1, dtype=np.int64)
        heads = [head for head, classes in enumerate(graph.labels[unit]) if not stays[classes].any()]
        if len(heads) < 2:  # one has to stay
            continue
        for place, head in enumerate(heads):
            owner[graph.labels[unit[head]]] = place
        members = graph.members(owner, len(heads))
        produced = [m for m in members if m.role == "producer"]
        if not produced:
            continue
        stays[owner >= 0] = True  # a module that is used twice has its heads in one family
        alive = np.ones(graph.classes, dtype=bool)
        whole = graph.macs_of_classes(alive), graph.parameters_of_classes(alive)
        alive[owner == 0] = False
        name = produced[0].parameter.rpartition(".")[0]
        family = GroupFamily(
            name,
            members,
            len(heads),
            whole[0] - graph.macs_of_classes(alive),
            whole[1] - graph.parameters_of_classes(alive),
        )
        families.append((family, owner))
    return families


def _heads(graph: ChannelGraph) -> list[Ids]:
    """The coordinates of each head (heads, any) of attention; the groups of convolutions are no heads."""
    values = []
    for node in graph.calls:
        if operator(node) == "scaled_dot_product_attention" and node not in graph.barriers:
            axis = graph.axis(arguments(node)["value"])
            if axis is not None:
                values.append(np.unique(axis.ids))
    taken = np.concatenate(values) if values else np.empty(0, dtype=np.int64)
    return [unit for unit in graph.units if np.isin(unit, taken).any(1).all()]
