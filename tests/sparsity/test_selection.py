"""The fewest groups, least important for their cost first, that meet the target."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.graph.space import Flags
from compactmtl.sparsity.selection import Limits, limits_of, marginal_costs, select, with_tied


def macs(keep: Sequence[Flags]) -> float:
    """MACs of a chain of layers from 3 to 5 channels, each weighing more: bilinear in neighbors."""
    counts = [3, *(int(k.sum()) for k in keep), 5]
    return float(sum((i + 1) * a * b for i, (a, b) in enumerate(pairwise(counts))))


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    share=st.floats(0, 0.95),
    align=st.sampled_from([1, 2, 4]),
    least=st.integers(1, 4),
    seed=st.integers(0, 1000),
    died=st.floats(0, 0.3),
)
def test_selection_meets_the_target_and_its_own_rules(
    sizes: list[int], share: float, align: int, least: int, seed: int, died: float
) -> None:
    rng = np.random.default_rng(seed)
    importance = [rng.random(n) for n in sizes]
    families = [family(n) for n in sizes]
    limits = [limits_of(f, align, least) for f in families]
    dead = [(rng.random(limit.size) < died) & (np.arange(limit.size) >= limit.least) for limit in limits]
    everything = [np.ones(n, dtype=bool) for n in sizes]
    costs = marginal_costs(macs, everything)
    target = (1 - share) * macs(everything)
    chosen = select(importance, dead, limits, costs, macs, target)
    for gone, flags, limit, values in zip(dead, chosen, limits, importance, strict=True):
        kept = limit.size - int(flags.sum())
        assert kept >= limit.least
        assert not (gone & ~flags).any(), "what is dead stays chosen"
        assert kept in (limit.size, limit.size - int(gone.sum())) or kept % limit.step == 0
        alive = ~gone
        if (flags & alive).any() and (~flags).any():
            assert values[flags & alive].max() <= values[~flags].min(), "the least important go first"
    smallest = [np.arange(limit.size) < limit.least for limit in limits]
    if macs(smallest) <= target:
        assert macs([~flags for flags in chosen]) <= target


def test_no_group_more_than_needed_goes() -> None:
    everything = [np.ones(10, dtype=bool)] * 2
    importance = [np.arange(10.0), np.arange(10.0)]
    target = 0.7 * macs(everything)
    dead = [np.zeros(10, dtype=bool)] * 2
    chosen = select(importance, dead, [Limits(1, 1, 10)] * 2, marginal_costs(macs, everything), macs, target)
    assert macs([~flags for flags in chosen]) <= target
    # The group that crossed the target is the last of one family; without the last of each it is missed.
    both = [flags.copy() for flags in chosen]
    for flags in both:
        if flags.any():
            flags[np.flatnonzero(flags)[-1]] = False
    assert macs([~flags for flags in both]) > target


def test_a_step_that_is_not_needed_stays() -> None:
    importance: list[NDArray[np.float64]] = [np.linspace(100, 115, 16), np.linspace(0, 15, 16)]
    dead = [np.zeros(16, dtype=bool)] * 2

    def cost(keep: Sequence[Flags]) -> float:  # a group of the first family costs ten of the second
        return float(10 * keep[0].sum() + keep[1].sum())

    # by importance alone 8 of the second go first, then 8 of the first, which meet the target without the others
    chosen = select(importance, dead, [Limits(8, 8, 16)] * 2, [1.0, 1.0], cost, 10.0 * 8 + 16)
    assert [int(flags.sum()) for flags in chosen] == [8, 0]


def test_counts_are_multiples_of_the_step_after_groups_were_removed_too() -> None:
    rng = np.random.default_rng(0)
    importance = [rng.random(64), rng.random(64)]
    dead = [np.argsort(np.argsort(importance[0])) < 23, np.zeros(64, dtype=bool)]

    def cost(keep: Sequence[Flags]) -> float:
        return float(keep[0].sum() + keep[1].sum())

    limits = [Limits(8, 8, 64)] * 2
    masked = [64 - int(f.sum()) for f in select(importance, dead, limits, [1.0, 1.0], cost, 100.0)]
    remaining = [importance[0][~dead[0]], importance[1]]
    none = [np.zeros(len(values), dtype=bool) for values in remaining]
    chosen = select(remaining, none, limits, [1.0, 1.0], cost, 100.0)
    assert [len(f) - int(f.sum()) for f in chosen] == masked
    assert all(count % 8 == 0 for count in masked)


def test_cheap_channels_go_only_when_they_matter_less() -> None:
    costs = [1.0, 100.0]
    importance = [np.full(8, 1.0), np.full(8, 10.0)]
    everything = [np.ones(8, dtype=bool)] * 2
    dead = [np.zeros(8, dtype=bool)] * 2
    chosen = select(importance, dead, [Limits(1, 1, 8)] * 2, costs, macs, 0.8 * macs(everything))
    # 1/1 a MAC in the first family against 10/100 in the second.
    assert not chosen[0].any()
    assert chosen[1].any()


def test_marginal_cost_follows_what_remains() -> None:
    full = [np.ones(4, dtype=bool), np.ones(6, dtype=bool)]
    assert marginal_costs(macs, full) == [1 * 3 + 2 * 6, 2 * 4 + 3 * 5]
    half = [full[0], np.arange(6) < 3]
    assert marginal_costs(macs, half) == [1 * 3 + 2 * 3, 2 * 4 + 3 * 5]


def family(n: int, width: int = 1) -> GroupFamily:
    indices = np.arange(n * width, dtype=np.int64).reshape(n, width)
    return GroupFamily("layer", (Member("w", 0, indices, "producer"),), n, 1.0, 1.0)


def test_limits_count_channels_not_groups() -> None:
    assert limits_of(family(32), align=8, least=8) == Limits(8, 8, 32)
    assert limits_of(family(32), align=8, least=10) == Limits(8, 16, 32)
    assert limits_of(family(32, width=4), align=8, least=8) == Limits(2, 2, 32)
    assert limits_of(family(3), align=1, least=8) == Limits(1, 3, 3)
    assert limits_of(family(32), align=1, least=1) == Limits(1, 1, 32)


def widest_of_two(keep: Sequence[Flags]) -> float:
    """A network whose forward counts the first two layers with one number: both run at the width of the wider one."""
    first, second, third = (int(k.sum()) for k in keep)
    return 10.0 * max(first, second) + 3.0 * third


def test_layers_that_free_channels_only_together_share_what_they_free() -> None:
    everything = [np.ones(8, dtype=bool)] * 3
    limits = [Limits(step=1, least=2, size=8)] * 3
    alone = marginal_costs(widest_of_two, everything)
    assert alone == [0.0, 0.0, 3.0]
    costs = with_tied(alone, widest_of_two, everything, limits)
    assert costs == [5.0, 5.0, 3.0]
    importance = [np.arange(1.0, 9.0)] * 3
    none = [np.zeros(8, dtype=bool)] * 3
    target = 0.4 * widest_of_two(everything)
    assert (
        widest_of_two([~f for f in select(importance, none, limits, alone, widest_of_two, target)]) > target
    )
    chosen = select(importance, none, limits, costs, widest_of_two, target)
    assert widest_of_two([~flags for flags in chosen]) <= target
    assert chosen[0].sum() == chosen[1].sum(), "nothing goes that frees nothing"


def test_a_layer_that_frees_nothing_at_all_costs_nothing() -> None:
    everything = [np.ones(8, dtype=bool)] * 3
    limits = [Limits(step=1, least=2, size=8)] * 3
    assert with_tied([0.0, 4.0, 0.0], lambda keep: 7.0, everything, limits) == [0.0, 4.0, 0.0]
