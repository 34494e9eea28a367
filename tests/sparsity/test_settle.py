"""A choice by a table that is wrong is put right by measurements before it is final."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from torch import nn

from compactmtl.config.sparsity import LatencyBudget, SelectiveConfig
from compactmtl.graph.space import Flags
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from compactmtl.sparsity.settle import LEAST, MILESTONES, ROUNDS, Clock, Truth
from compactmtl.sparsity.target import Target

INPUT = (torch.zeros(1, 3, 8, 8),)
BUDGET = 0.1  # ms, of 0.257 by the table
Measured = Callable[[int], float]


def target(real: Measured | None, scale: float = 1.0) -> Target:
    """Of a network whose one layer of 256 channels takes 1 µs a channel by the table, and what `real` says in truth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 1), nn.ReLU(), nn.Conv2d(256, 4, 1))
    each = Regime(step=1, outputs=1e-3)
    layer = StaircaseLatency(full=(256, 3), align=1, aligned=each, ragged=each)
    nothing = StaircaseLatency(full=(4, 256), align=1, aligned=Regime(step=1), ragged=Regime(step=1))
    table = LatencyTable(
        version=3, target="mine", image=(3, 8, 8), tasks=(), rest_ms=1e-3, layers={"0": layer, "2": nothing}
    )
    config = SelectiveConfig(latency=LatencyBudget(target="mine", ms=BUDGET), min_channels=1)
    aim = Target(channel_groups(model, INPUT), config, 1, "sparsity.selective", table.scaled(scale))
    if real is not None:
        aim.truth.clock = lambda keep: real(int(keep[0].sum()))
    return aim


def settled(aim: Target) -> int:
    gone = aim.checked(aim.by_magnitude, 1.0)
    return int((~gone[0]).sum())


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.3, 2.0])
def test_the_choice_is_within_the_budget_and_not_far_below(factor: float) -> None:
    def real(width: int) -> float:
        return 2e-3 + factor * 1e-3 * width

    width = settled(target(real))
    assert 0.92 * BUDGET <= real(width) <= BUDGET


def test_steps_that_the_table_does_not_know_are_met_from_below() -> None:
    """In truth channels cost in blocks of 32: the budget lies between two blocks."""

    def real(width: int) -> float:
        return 1.25e-3 * int(np.ceil(width / 32)) * 32

    width = settled(target(real))
    assert real(width) <= BUDGET


def test_where_no_choice_is_within_the_budget_the_fastest_is_taken() -> None:
    aim = target(lambda width: 1.0 + 1e-4 * width)
    width = settled(aim)
    assert width == 1 or all(check.measured >= 1.0 + 1e-4 * width for check in aim.truth.checks)
    assert len(aim.truth.checks) <= ROUNDS


def test_without_a_clock_the_table_decides() -> None:
    aim = target(None)
    assert settled(aim) in (98, 99) and aim.truth.checks == [] and aim.truth.factor == 1


def test_what_cannot_be_measured_is_taken_as_it_is() -> None:
    aim = target(None)
    aim.truth.clock = lambda keep: None
    assert 90 <= settled(aim) <= 99
    assert aim.truth.checks == []


def busy_after(real: Measured, rounds: int) -> Clock:
    """A clock that measures so often, and then finds the machine too busy."""
    left = [rounds]

    def clock(keep: Sequence[Flags]) -> float | None:
        left[0] -= 1
        return real(int(keep[0].sum())) if left[0] >= 0 else None

    return clock


def test_what_was_measured_within_the_budget_stays_where_the_next_measurement_fails() -> None:
    """The first choice is within the budget and not close to it; the choice after it cannot be measured."""

    def real(width: int) -> float:
        return 0.6e-3 * width

    aim = target(None)
    aim.truth.clock = busy_after(real, 1)
    first = settled(target(None))
    assert real(first) < LEAST * BUDGET
    width = settled(aim)
    assert len(aim.truth.checks) == 1
    assert real(width) == aim.truth.checks[0].measured


def test_what_was_too_slow_is_not_taken_where_the_next_measurement_fails() -> None:
    """The next choice follows what was measured, so that it is within the budget by all that is known."""

    def real(width: int) -> float:
        return 1.5e-3 * width

    aim = target(None)
    aim.truth.clock = busy_after(real, 1)
    width = settled(aim)
    assert aim.truth.checks[0].measured > BUDGET >= real(width)


@pytest.mark.parametrize(
    ("shares", "taken"),
    [
        ([0.93, 0.995], 0.93),  # the next measurement of the other may be over the budget
        ([0.85, 0.995], 0.995),  # much time would be left unused
        ([0.7, 0.9, 1.05], 0.9),
        ([1.3, 1.05, 1.1], 1.05),
    ],
)
def test_of_choices_that_are_not_close_the_nearest_is_taken(shares: list[float], taken: float) -> None:
    left = chain(shares, repeat(shares[-1]))  # the last one is chosen again: no better one is known
    truth = Truth(clock=lambda keep: next(left))
    choices = iter(range(1, 9))
    by_number: list[int] = []

    def choose() -> list[Flags]:
        by_number.append(next(choices))
        return [np.array([False] * by_number[-1])]

    (gone,) = truth.settle(choose, lambda keep: 1.0, 1.0)
    assert shares[min(len(gone), len(shares)) - 1] == taken


def test_a_choice_on_the_way_is_measured_once_a_milestone() -> None:
    """The network is faster than the table says: nothing dies that the budget has room for."""
    aim = target(lambda width: 0.5e-3 * width)

    def at(share: float) -> Callable[[], list[Flags]]:
        return lambda: aim.choose([np.arange(256.0)], [np.zeros(256, dtype=bool)], [1.0], share)

    widths: list[int] = []
    for share in (0.3, 0.5, MILESTONES[0], 0.7, MILESTONES[1], 0.95):
        (gone,) = aim.checked(at(share), share)
        widths.append(int((~gone).sum()))
    assert [check.share for check in aim.truth.checks] == list(MILESTONES)
    assert widths[-1] > 180  # 200 channels are within the budget; by the table 99 would be


def test_what_was_measured_survives_a_checkpoint() -> None:
    aim, other = target(lambda width: 1.3e-3 * width), target(None)
    settled(aim)
    other.load_state_dict(aim.state_dict())
    assert other.truth.checks == aim.truth.checks and other.truth.factor == pytest.approx(1.3, rel=0.1)


def test_a_resumed_run_goes_on_with_the_table_that_it_began_with() -> None:
    """As where the user's cache was emptied and another table was measured meanwhile."""
    aim, other = target(None), target(None, scale=2.0)
    assert other.total != aim.total
    other.load_state_dict(aim.state_dict())
    assert other.total == aim.total and other.cost(other.groups.whole()) == aim.total


def test_a_truth_without_a_clock_is_never_due() -> None:
    assert not Truth().due(0.9)
