"""Equal-width constraints: tensors whose channels a forward may count with one number keep equally many channels.

A forward that reshapes one tensor by the width of another, as in `B, N, C = x.shape` and `attention.reshape(B, N, C)`,
runs only where both have lost as many channels. The traced graph does not say where a number comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compactmtl.graph.calls import owner, stack_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids

EqualWidths = Sequence[Ids]  # the channels of each tensor: (channels,) or (heads, channels of one)


def find_equal_widths(graph: ChannelGraph) -> list[EqualWidths]:
    """One constraint for each module whose own forward reshapes channels, over all tensors that it handles of one width."""
    reshaping = {owner(node) for node in graph.calls if graph.reshapes(node)}
    rows: dict[tuple[str, int], dict[bytes, Ids]] = {}
    for node in graph.calls:
        # What its own calls, and those of the layers in it, read and give.
        for path in list(stack_of(node).values())[-2:]:
            for handled in (node, *graph.tensors_in(node)) if path in reshaping else ():
                axis = graph.axis(handled)
                if axis is None or graph.is_static(handled):
                    continue
                own = rows.setdefault((path, axis.ids.size), {})
                key = np.sort(graph.labels[axis.ids.ravel()]).tobytes()
                if key not in own or axis.ids.ndim > own[key].ndim:
                    own[key] = axis.ids
    return [list(own.values()) for own in rows.values() if len(own) > 1]


def apply_equal_widths(graph: ChannelGraph, alive: Flags, widths: EqualWidths) -> None:
    """Keep as many channels of each tensor as of the one that keeps most, adding to the heads that have the fewest."""
    most = max(int(alive[graph.labels[ids]].sum()) for ids in widths)
    for ids in widths:
        classes = graph.labels[ids].reshape(-1, ids.shape[-1])
        while int((kept := alive[classes]).sum()) < most:
            head = int(np.where(kept.all(1), classes.size, kept.sum(1)).argmin())
            alive[classes[head][~kept[head]][0]] = True
