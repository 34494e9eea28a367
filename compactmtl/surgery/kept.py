"""Which layers keep dead channels, and why: what surgery left alone."""

from __future__ import annotations

import numpy as np

from compactmtl.graph.analysis import operator, source_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags
from compactmtl.surgery.analyse import constants_without_bias


def kept_whole(graph: ChannelGraph, alive: Flags, unbiased: frozenset[str]) -> dict[str, str]:
    """Layer -> reason, for every layer whose output holds channels that are constant and yet stay.

    Channels that stay for alignment, as carrier of folded constants or because a layer needs one are not
    listed: the layer's change shows them. `unbiased` names layers that cannot be given a bias.
    """
    analysis = graph.analysis
    causes = graph.analysis.space.causes(graph.labels)
    mixed = _mixed(graph)
    causes = {**mixed, **causes}
    needed = graph.live_classes()
    needed |= constants_without_bias(graph, needed, unbiased)
    dead = ~graph.varying_classes() & needed & alive
    dead[list(mixed)] |= alive[list(mixed)]
    kept = {_layer(name): reason for name, reason in analysis.kept_whole.items()}
    for node, product in analysis.products.items():
        if product.name in kept or node not in analysis.rules:
            continue
        if node in analysis.traced.hazards:
            kept[product.name] = "its output is written through a view"
            continue
        classes = graph.labels[product.outputs]
        idle = np.unique(classes[analysis.constant(node).ravel() & dead[classes]])
        reasons = [causes[int(label)] for label in idle if int(label) in causes]
        if reasons:
            kept[product.name] = reasons[0]
        elif len(idle):
            kept[product.name] = "a constant that cannot be folded into what reads it"
    return kept


def _mixed(graph: ChannelGraph) -> dict[int, str]:
    """Class -> reason, where a norm makes something that varies of a channel that does not."""
    analysis = graph.analysis
    reasons: dict[int, str] = {}
    for node, (ids, reason) in analysis.counted.items():
        for label in graph.labels[ids[analysis.constant(source_of(node))]]:
            reasons.setdefault(int(label), f"{operator(node)}: {reason}")
    return reasons


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
