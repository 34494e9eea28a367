"""Which layers keep dead channels, and why: what surgery left alone."""

from __future__ import annotations

import numpy as np

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags


def kept_whole(graph: ChannelGraph, alive: Flags) -> dict[str, str]:
    """Layer -> reason, for every layer whose output holds channels that are constant and yet stay.

    Channels that stay for alignment, as carrier of folded constants or because a layer needs one are not
    listed: the layer's change shows them.
    """
    analysis = graph.analysis
    causes = graph.analysis.space.causes(graph.labels)
    dead = ~graph.varying_classes() & graph.live_classes() & alive
    kept = {_layer(name): reason for name, reason in analysis.kept_whole.items()}
    for node, product in analysis.products.items():
        if product.name in kept or node not in analysis.rules:
            continue
        classes = graph.labels[product.outputs]
        idle = np.unique(classes[analysis.constant(node).ravel() & dead[classes]])
        reasons = [causes[int(label)] for label in idle if int(label) in causes]
        if reasons:
            kept[product.name] = reasons[0]
        elif len(idle):
            kept[product.name] = "a constant that cannot be folded into what reads it"
    return kept


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
