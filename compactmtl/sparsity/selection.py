"""Which channels go: the fewest, by importance per cost, that bring the model to a cost, such as a number of MACs.

All of it is numpy over families of groups; no tensor of the model is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compactmtl.graph.groups import GroupFamily
from compactmtl.graph.space import Flags

Keep = Sequence[Flags]  # the groups kept of each family
CostFunction = Callable[[Keep], float]  # such as the MACs that a model has with these groups


@dataclass(frozen=True)
class Limits:
    """How far a family's group count may go down: in multiples of `step`, to `least` at the lowest.

    `size` is the number of groups that the family had at first; some may have been removed from the model since.
    """

    step: int
    least: int
    size: int


def limits_of(
    family: GroupFamily, align: int, least: int, groups: int = 1, size: int | None = None
) -> Limits:
    """The limits of a family that keeps `least` channels and `groups` groups, in multiples of `align` channels.

    A group that holds several slices of a tensor is several channels. `size` is the family's own by default. A branch may go.
    """
    if family.branch:
        return Limits(1, 0, 1)
    width = min(m.indices.shape[1] for m in family.members)
    step = align // math.gcd(align, width)
    floor = math.ceil(max(math.ceil(least / width), groups) / step) * step
    return Limits(step, min(family.size, max(floor, 1)), family.size if size is None else size)


def marginal_costs(cost: CostFunction, keep: Sequence[Flags]) -> list[float]:
    """What one more channel of each family would take away, with only `keep`."""
    now = cost(keep)
    costs = []
    for index, flags in enumerate(keep):
        alive = np.flatnonzero(flags)
        less = list(keep)
        less[index] = flags.copy()
        less[index][alive[-1:]] = False
        costs.append(now - cost(less))
    return costs


def mean_costs(cost: CostFunction, keep: Sequence[Flags], limits: Sequence[Limits]) -> list[float]:
    """What a channel of each family takes away on the average, from `keep` down to the least that stays.

    For a cost that falls in steps: one channel less may take nothing away, or even cost more. 0 where none may go.
    """
    now = cost(keep)
    costs = []
    for index, (flags, limit) in enumerate(zip(keep, limits, strict=True)):
        alive = np.flatnonzero(flags)
        removable = len(alive) - limit.least
        if removable <= 0:
            costs.append(0.0)
            continue
        less = list(keep)
        less[index] = flags.copy()
        less[index][alive[limit.least :]] = False
        costs.append((now - cost(less)) / removable)
    return costs


def with_tied(
    costs: Sequence[float], cost: CostFunction, keep: Sequence[Flags], limits: Sequence[Limits]
) -> list[float]:
    """`costs`, where a family that takes nothing away alone has its share of what all such families take away together.

    A forward that counts several tensors with one number keeps as many channels of each as of the widest: no family of
    them frees anything before the others do. What they free together is shared evenly by channel, down to the least that stays.
    """
    less, removable = list(keep), 0
    tied = []
    for index, (own, flags, limit) in enumerate(zip(costs, keep, limits, strict=True)):
        alive = np.flatnonzero(flags)
        if own <= 0 and len(alive) > limit.least:
            tied.append(index)
            removable += len(alive) - limit.least
            less[index] = flags.copy()
            less[index][alive[limit.least :]] = False
    if len(tied) < 2:
        return list(costs)
    share = max(cost(keep) - cost(less), 0.0) / removable
    return [share if index in tied else own for index, own in enumerate(costs)]


def select(
    importance: Sequence[NDArray[np.float64]],
    dead: Sequence[Flags],
    limits: Sequence[Limits],
    costs: Sequence[float],
    cost: CostFunction,
    target: float,
) -> list[Flags]:
    """The groups to remove, a bool array (n,) a family, so that the `cost` of the others is at most `target`.

    Groups are removed in rising order of importance / cost over all families; `dead` groups always are. The counts that
    remain are multiples of the family's step, or the whole family. A step that is not needed to meet the target, because
    the last one taken was large, is taken back, the most important first. Where even the least counts miss the target,
    everything that may be removed is.
    """
    sizes = [limit.size for limit in limits]
    orders, scores, owners = [], [], []
    for index, (values, gone) in enumerate(zip(importance, dead, strict=True)):
        values = np.where(gone, -1.0, values)  # what is dead counts for nothing, whatever it once was worth
        order = np.argsort(values, kind="stable")
        removable = len(order) - limits[index].least
        if costs[index] <= 0:
            removable = 0  # takes nothing away
        orders.append(order)
        scores.append(values[order[:removable]] / costs[index] if removable > 0 else np.empty(0))
        owners.append(np.full(max(removable, 0), index))
    queue = np.concatenate(owners)[np.argsort(np.concatenate(scores), kind="stable")]
    lost = [size - len(order) for size, order in zip(sizes, orders, strict=True)]
    least_cuts = [
        _up(limit, gone_before + int(gone.sum())) - gone_before
        for limit, gone_before, gone in zip(limits, lost, dead, strict=True)
    ]

    def cuts(length: int) -> list[int]:
        counts = np.bincount(queue[:length], minlength=len(orders))
        return [
            max(_down(limit, gone_before + int(count)) - gone_before, least)
            for limit, gone_before, count, least in zip(limits, lost, counts, least_cuts, strict=True)
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
    numbers = cuts(low)
    if not meets(numbers):
        return _first(orders, numbers)
    worth = [
        score[cut - 1] if 0 < cut <= len(score) else 0.0 for score, cut in zip(scores, numbers, strict=True)
    ]
    for index in np.argsort(worth, kind="stable")[::-1]:
        step, size = limits[index].step, sizes[index] - lost[index]
        while numbers[index] > least_cuts[index]:
            kept = min(((size - numbers[index]) // step + 1) * step, sizes[index])
            fewer = [*numbers[:index], size - kept, *numbers[index + 1 :]]
            if kept > size or fewer[index] < least_cuts[index] or not meets(fewer):
                break
            numbers = fewer
    return _first(orders, numbers)


def _first(orders: Sequence[NDArray[np.intp]], numbers: Sequence[int]) -> list[Flags]:
    """Flags of the first so many of each order."""
    flags = []
    for order, number in zip(orders, numbers, strict=True):
        out = np.zeros(len(order), dtype=bool)
        out[order[:number]] = True
        flags.append(out)
    return flags


def _down(limits: Limits, count: int) -> int:
    """The largest number of groups to remove, at most `count`, that leaves a multiple of the step."""
    return max(limits.size - math.ceil((limits.size - count) / limits.step) * limits.step, 0)


def _up(limits: Limits, count: int) -> int:
    """The smallest number of groups to remove, at least `count`, that leaves a multiple of the step."""
    if count == 0:
        return 0
    kept = (limits.size - count) // limits.step * limits.step
    return limits.size - kept if kept >= limits.least else count
