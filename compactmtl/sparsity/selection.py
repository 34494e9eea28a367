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
    sizes: Sequence[int] | None = None,
) -> list[Flags]:
    """The groups to remove, a bool array (n,) a family, so that the `cost` of the others is at most `target`.

    Groups go in rising order of importance / cost over all families; `dead` groups always go. `steps` holds
    each family's unit and least count (see `units`): counts left are multiples of the unit or the whole
    family. Where some of a family's groups have left the model already, `sizes` says how many it had at first.
    A unit that is not needed to meet the target, as the last one taken was large, stays, the most important first.
    Where even the least counts miss the target, all that may go goes.
    """
    sizes = [len(values) for values in importance] if sizes is None else sizes
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
    lost = [size - len(order) for size, order in zip(sizes, orders, strict=True)]
    least_cuts = [
        _up(size, left + int(gone.sum()), *step) - left
        for size, left, gone, step in zip(sizes, lost, dead, steps, strict=True)
    ]

    def cuts(length: int) -> list[int]:
        counts = np.bincount(queue[:length], minlength=len(orders))
        return [
            max(_down(size, left + int(count), unit) - left, least)
            for size, left, count, (unit, _), least in zip(
                sizes, lost, counts, steps, least_cuts, strict=True
            )
        ]

    def meets(numbers: Sequence[int]) -> bool:
        return cost([~flags for flags in _first(orders, numbers)]) <= target

    low, high = 0, len(queue)
    while low < high:
        middle = (low + high) // 2
        if meets(cuts(middle)):
            high = middle
        else:
            low = middle + 1
    found = cuts(low)
    if not meets(found):
        return _first(orders, found)
    worth = [
        score[cut - 1] if 0 < cut <= len(score) else 0.0 for score, cut in zip(scores, found, strict=True)
    ]
    for index in np.argsort(worth, kind="stable")[::-1]:
        unit, size = steps[index][0], sizes[index] - lost[index]
        while found[index] > least_cuts[index]:
            kept = min(((size - found[index]) // unit + 1) * unit, sizes[index])
            fewer = [*found[:index], size - kept, *found[index + 1 :]]
            if kept > size or fewer[index] < least_cuts[index] or not meets(fewer):
                break
            found = fewer
    return _first(orders, found)


def _first(orders: Sequence[NDArray[np.intp]], numbers: Sequence[int]) -> list[Flags]:
    """Flags of the first so many of each order."""
    flags = []
    for order, number in zip(orders, numbers, strict=True):
        out = np.zeros(len(order), dtype=bool)
        out[order[:number]] = True
        flags.append(out)
    return flags


def _down(size: int, count: int, unit: int) -> int:
    """The largest number of groups to remove, at most `count`, that leaves a multiple of `unit`."""
    return max(size - math.ceil((size - count) / unit) * unit, 0)


def _up(size: int, count: int, unit: int, least: int) -> int:
    """The smallest number of groups to remove, at least `count`, that leaves a multiple of `unit`."""
    if count == 0:
        return 0
    kept = (size - count) // unit * unit
    return size - kept if kept >= least else count
