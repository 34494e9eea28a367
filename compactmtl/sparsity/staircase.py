"""The multiple that each family's channel counts are kept at, from the staircases of a latency table."""

from __future__ import annotations

from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import StaircaseLatency

# Kernels read at least four values at once, and a step above 32 is a cache's and no kernel's.
LEAST, MOST = 4, 32


def family_steps(groups: ChannelGroups, table: LatencyTable, otherwise: int) -> list[int]:
    """For each family the step of those layers that hold most of the time of all that its channels enter or leave.

    Between two multiples of the step a channel costs nothing, so useful ones are kept; `otherwise` stands for families of
    which the table says nothing, as one of layers on a grid does.
    """
    if groups.removal is None:
        return [otherwise] * len(groups)
    whole = groups.removal.widths(groups.whole())
    steps = []
    for index, family in enumerate(groups):
        keep = groups.whole()
        keep[index][family.size // 2 :] = False
        changed = groups.removal.widths(keep)
        votes: dict[int, float] = {}
        for name, width in whole.items():
            layer = table.layers.get(name)
            outputs, inputs = (one != other for one, other in zip(changed[name], width, strict=True))
            if (outputs or inputs) and isinstance(layer, StaircaseLatency):
                step = min(max(layer.step_of(outputs=outputs, inputs=inputs), LEAST), MOST)
                votes[step] = votes.get(step, 0.0) + layer.at(*width)
        timed = {step: ms for step, ms in votes.items() if ms > 0}
        steps.append(max(timed, key=lambda step: (timed[step], step)) if timed else otherwise)
    return steps
