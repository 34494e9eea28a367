"""Orders of channels: never worse than before, the best of a few, and in one piece what can be."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.arrange import EXACT_BLOCKS, arrange, span_costs


def _drawn(seed: int, count: int, size: int) -> tuple[Flags, NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    return generator.random((count, size)) < generator.random((count, 1)), generator.random(count) + 0.1


def _cost(sets: Flags, weights: NDArray[np.float64], order: Ids) -> float:
    return float(weights @ span_costs(sets[:, order]))


def test_a_span_reaches_from_the_first_to_the_last() -> None:
    sets = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=bool)
    assert span_costs(sets).tolist() == [3, 0, 5, 1]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), size=st.integers(1, 40))
def test_an_order_holds_all_and_costs_no_more_than_before(seed: int, count: int, size: int) -> None:
    sets, weights = _drawn(seed, count, size)
    order = arrange(sets, weights)
    assert sorted(order.tolist()) == list(range(size))
    assert _cost(sets, weights, order) <= _cost(sets, weights, np.arange(size)) * (1 + 1e-9)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), size=st.integers(1, 6))
def test_of_few_channels_the_order_is_the_best(seed: int, count: int, size: int) -> None:
    sets, weights = _drawn(seed, count, size)
    least = min(_cost(sets, weights, np.array(order)) for order in permutations(range(size)))
    assert _cost(sets, weights, arrange(sets, weights)) <= least * (1 + 1e-9)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), size=st.integers(2, 80))
def test_what_some_order_has_in_one_piece_is_in_one_piece(seed: int, count: int, size: int) -> None:
    """Sets of channels from one to another of a hidden order: at most 2 * 7 + 1 blocks."""
    assert EXACT_BLOCKS >= 2 * 7 + 1
    generator = np.random.default_rng(seed)
    ends = np.sort(generator.integers(0, size, (count, 2)), axis=1)
    hidden = np.arange(size)
    sets = (hidden >= ends[:, :1]) & (hidden <= ends[:, 1:])
    sets = sets[:, generator.permutation(size)]
    order = arrange(sets, np.ones(count))
    assert (span_costs(sets[:, order]) == sets.sum(1)).all()


def test_two_sets_are_in_one_piece_whatever_they_hold() -> None:
    for seed in range(20):
        sets, weights = _drawn(seed, 2, 30)
        order = arrange(sets, weights)
        assert (span_costs(sets[:, order]) == sets.sum(1)).all()


def test_a_long_chain_of_sets_is_in_one_piece() -> None:
    """As in a residual stream to which every block adds channels: more blocks than are put in the best order."""
    generator = np.random.default_rng(0)
    born = generator.integers(0, 40, 300)
    sets = born <= np.arange(40)[:, None]
    order = arrange(sets, np.ones(40))
    assert (span_costs(sets[:, order]) == sets.sum(1)).all()


def test_sets_that_hold_all_or_nothing_change_nothing() -> None:
    sets = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    assert arrange(sets, np.ones(2)).tolist() == [0, 1, 2, 3]
