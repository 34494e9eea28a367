"""Which channels go: the fewest, by importance per cost, that bring the model to a cost, such as a number of MACs.

All of it is numpy over families of groups; no tensor of the model is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from compactmtl.graph.groups import GroupFamily

Flags = NDArray[np.bool_]
Cost = Callable[[Sequence[Flags]], float]


def units(family: GroupFamily, align: int, least: int, groups: int = 1) -> tuple[int, int]:
    """The step in which a family's group count goes down, and the least count that must stay.

    `align` and `least` count channels; a group that holds several slices of a tensor is several channels. At least
    `groups` groups stay too.
    """
    width = min(m.indices.shape[1] for m in family.members)
    unit = align // math.gcd(align, width)
    floor = math.ceil(max(math.ceil(least / width), groups) / unit) * unit
    return unit, min(family.size, max(floor, 1))


def marginal_costs(cost: Cost, keep: Sequence[Flags]) -> list[float]:
    """What one more channel of each family would take away, with only `keep` left."""
    now = cost(keep)
    costs = []
    for index, flags in enumerate(keep):
        alive = np.flatnonzero(flags)
        less = list(keep)
        less[index] = flags.copy()
        less[index][alive[-1:]] = False
        costs.append(now - cost(less))
    return costs


def select(
    importance: Sequence[NDArray[np.float64]],
    dead: Sequence[Flags],
    steps: Sequence[tuple[int, int]],
    costs: Sequence[float],
    cost: Cost,
    target: float,
) -> list[Flags]:
    """The groups to remove, a bool array (n,) a family, so that the `cost` of the others is at most `target`.

    Groups go in rising order of importance / cost over all families; `dead` groups always go. `steps` holds
    each family's unit and least count (see `units`): counts left are multiples of the unit or the whole
    family. Where even the least counts miss the target, all that may go goes.
    """
    orders, scores, owners = [], [], []
    for index, (values, gone) in enumerate(zip(importance, dead, strict=True)):
        values = np.where(gone, -1.0, values)  # what is dead counts for nothing, whatever it once was worth
        order = np.argsort(values, kind="stable")
        removable = len(order) - steps[index][1]
        if costs[index] <= 0:
            removable = 0  # takes nothing away
        orders.append(order)
        scores.append(values[order[:removable]] / costs[index] if removable > 0 else np.empty(0))
        owners.append(np.full(max(removable, 0), index))
    queue = np.concatenate(owners)[np.argsort(np.concatenate(scores), kind="stable")]

    def removed(length: int) -> list[Flags]:
        counts = np.bincount(queue[:length], minlength=len(orders))
        flags = []
        for order, gone, (unit, least), count in zip(orders, dead, steps, counts, strict=True):
            size = len(order)
            cut = max(_down(size, int(count), unit), _up(size, int(gone.sum()), unit, least))
            out = np.zeros(size, dtype=bool)
            out[order[:cut]] = True
            flags.append(out)
        return flags

    low, high = 0, len(queue)
    while low < high:
        middle = (low + high) // 2
        if cost([~flags for flags in removed(middle)]) <= target:
            high = middle
        else:
            low = middle + 1
    return removed(low)


def _down(size: int, count: int, unit: int) -> int:
    """The largest number of groups to remove, at most `count`, that leaves a multiple of `unit`."""
    return max(size - math.ceil((size - count) / unit) * unit, 0)


def _up(size: int, count: int, unit: int, least: int) -> int:
    """The smallest number of groups to remove, at least `count`, that leaves a multiple of `unit`."""
    if count == 0:
        return 0
    kept = (size - count) // unit * unit
    return size - kept if kept >= least else count
