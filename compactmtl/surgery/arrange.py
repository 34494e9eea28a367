"""Put channels in an order in which what each layer reads or writes of them lies together, or nearly so.

Each layer's channels are a set. Layers read and write spans, from the first channel of their set to the last, so what lies
between costs as much as the set itself. Of channels that lie in the same sets only the order of these blocks matters. Up to
EXACT_BLOCKS of them the best order is found, which has every set in one piece wherever some order has (the consecutive-ones
property). For more the sets are put in one after another: each splits the block that its span begins in and the one
that it ends in, which keeps the sets before it as they are.

Source: arXiv:2307.08771, which puts channels in order so that no layer copies; here spans may be longer than sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compactmtl.graph.space import Flags, Ids

EXACT_BLOCKS = 15  # 2^15 states of 15 steps each: some 30 ms

Weights = NDArray[np.float64]


def span_costs(sets: Flags) -> Ids:
    """From the first entry of each set to its last, for sets (sets, n) in the order that is asked about, (sets,)."""
    lengths = sets.shape[1] - sets.argmax(1) - sets[:, ::-1].argmax(1)
    costs: Ids = np.where(sets.any(1), lengths, 0)
    return costs


def arrange(sets: Flags, weights: Weights) -> Ids:
    """The order of n channels, as their places before, (n,), for sets of them (sets, n) that cost `weights` for each entry of their spans.

    It is the order that they have where none that is found costs less. Channels of one block stay in the order that they have.
    """
    size = sets.shape[1]
    before: Ids = np.arange(size)
    telling = sets.any(1) & ~sets.all(1)
    sets, weights = sets[telling], weights[telling]
    if not len(sets):
        return before
    best, least = before, _cost(sets, weights, before)
    for order in _orders(sets, weights):
        cost = _cost(sets, weights, order)
        if cost < least * (1 - 1e-9):
            best, least = order, cost
    return best


def _cost(sets: Flags, weights: Weights, order: Ids) -> float:
    return float(weights @ span_costs(sets[:, order]))


def _orders(sets: Flags, weights: Weights) -> Iterator[Ids]:
    blocks = _blocks(sets)
    if len(blocks) <= EXACT_BLOCKS:
        yield np.concatenate(_exact(blocks, sets, weights))
        return
    gain = weights * (sets.shape[1] - sets.sum(1))
    by_gain = np.argsort(-gain, kind="stable")
    whole = [np.arange(sets.shape[1])]
    for sequence in (
        by_gain,
        np.arange(len(sets)),
        np.arange(len(sets))[::-1],
        np.argsort(sets.sum(1), kind="stable"),
    ):
        yield np.concatenate(_refined(whole, sets, sequence))
    # The sets that promise most, as many as can be put in the best order, and the others within it.
    chosen: list[int] = []
    for index in map(int, by_gain):
        if len(_blocks(sets[[*chosen, index]])) <= EXACT_BLOCKS:
            chosen.append(index)
    exact = _exact(_blocks(sets[chosen]), sets[chosen], weights[chosen])
    yield np.concatenate(_refined(exact, sets, by_gain))


def _blocks(sets: Flags) -> list[Ids]:
    """The channels of each combination of sets, in the order in which the blocks begin; those of none are last."""
    _, first, inverse = np.unique(sets, axis=1, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    empty = ~sets[:, first].any(0)
    places = np.lexsort((first, empty))
    return [np.flatnonzero(inverse == place) for place in places]


def _exact(blocks: Sequence[Ids], sets: Flags, weights: Weights) -> list[Ids]:
    """The order of blocks with the least sum of weighted spans: the cheapest way from no block placed to all of them.

    A set is open where some of its blocks are placed and some are not. The next block costs its size in every open
    set and in every set that it lies in.
    """
    first = np.array([block[0] for block in blocks])
    sizes = np.array([len(block) for block in blocks], dtype=np.float64)
    member = sets[:, first]
    count = len(blocks)
    bits = np.int64(1) << np.arange(count)
    states = np.arange(1 << count)
    masks = (member * bits).sum(1)
    begun = (states & masks[:, None]) != 0
    is_open = begun & ((states & masks[:, None]) != masks[:, None])
    best = np.full(len(states), np.inf)
    best[0] = 0.0
    choice = np.zeros(len(states), dtype=np.int64)
    steps = np.stack(
        [sizes[b] * (weights @ (is_open | member[:, b : b + 1])) for b in range(count)]
    )  # (blocks, states): of placing the block behind those of the state
    placed = ((states[:, None] & bits) != 0).sum(1)
    for level in range(1, count + 1):
        own = states[placed == level]
        earlier = own[:, None] & ~bits
        costs = np.where((own[:, None] & bits) != 0, best[earlier] + steps[np.arange(count), earlier], np.inf)
        choice[own] = costs.argmin(1)
        best[own] = costs.min(1)
    order, state = [], len(states) - 1
    while state:
        order.append(int(choice[state]))
        state &= ~int(bits[order[-1]])
    return [blocks[index] for index in reversed(order)]


def _refined(blocks: Sequence[Ids], sets: Flags, sequence: Ids) -> list[Ids]:
    """The blocks, split so that each set in turn begins and ends at the border of one."""
    refined = list(blocks)
    for index in sequence:
        own = sets[index]
        touched = [place for place, block in enumerate(refined) if own[block].any()]
        first, last = touched[0], touched[-1]
        # From behind, so that places in front stay what they are.
        for place in dict.fromkeys((last, first)):
            inside = own[refined[place]]
            parts = [refined[place][inside], refined[place][~inside]]
            if place == first != last:
                parts.reverse()
            refined[place : place + 1] = [part for part in parts if len(part)]
    return refined
