"""Channels of a module that a forward may count with one number: kept in equal numbers, the number fits all of them.

A forward that reshapes one tensor by the width of another, as in `B, N, C = x.shape` and `attention.reshape(B, N, C)`,
runs only where both have lost as many channels. The traced graph does not say where a number comes from.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Grid, Ids
from compactmtl.surgery.counted import owner


def equal_counts(graph: ChannelGraph) -> list[Grid]:
    """For each module that splits or merges channels, all of as many channels that its forward handles, one a row."""
    analysis = graph.analysis
    sizes: dict[str, set[int]] = {}
    for node, ids in analysis.sized.items():
        sizes.setdefault(owner(node), set()).add(ids.size)
    rows: dict[tuple[str, int], dict[bytes, Ids]] = {}
    for node in analysis.traced.calls:
        path = owner(node)
        for handled in (node, *analysis.tensors_in(node)) if path in sizes else ():
            ids = _ids(graph, handled)
            if ids is not None and ids.size in sizes[path]:
                rows.setdefault((path, ids.size), {})[np.sort(graph.labels[ids]).tobytes()] = ids
    return [Grid(np.stack(list(own.values())), False) for own in rows.values() if len(own) > 1]


def _ids(graph: ChannelGraph, node: fx.Node) -> Ids | None:
    axis = graph.analysis.axis(node)
    return None if axis is None or graph.analysis.is_static(node) else axis.ids.ravel()
