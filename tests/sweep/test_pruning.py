"""A trial is given up where those that cost no more were better by then, and only there."""

from __future__ import annotations

import math

import pytest

from compactmtl.config.search import ObjectiveConfig, ParameterConfig, PruningConfig, SearchConfig
from compactmtl.sweep.pruning import Hopeless, Peer, best_so_far, check_hopeless, costs_of

RULE = PruningConfig(quantile=0.5, after_epochs=2, after_trials=3)


def search(*names: str) -> SearchConfig:
    return SearchConfig(
        parameters={"train.clip": ParameterConfig(kind="float", low=1, high=2)},
        objectives=tuple(
            ObjectiveConfig.model_validate({"name": name, "target": "x" if name == "latency" else None})
            for name in names
        ),
    )


def peers(*lasts: float, cost: float = 1.0) -> list[Peer]:
    return [Peer((cost,), (0.0, last, last)) for last in lasts]


def test_below_the_quantile_of_those_that_cost_no_more() -> None:
    with pytest.raises(Hopeless, match="after epoch 2") as caught:
        check_hopeless(RULE, (1.0,), [0.1, 0.3], peers(0.2, 0.4, 0.6))
    assert caught.value.epoch == 2
    check_hopeless(RULE, (1.0,), [0.1, 0.4], peers(0.2, 0.4, 0.6))  # at the median


def test_a_cheap_one_is_not_held_against_dear_ones() -> None:
    dear = peers(0.8, 0.9, 0.95, cost=2.0)
    check_hopeless(RULE, (1.0,), [0.1, 0.1], dear)
    with pytest.raises(Hopeless):
        check_hopeless(RULE, (2.0,), [0.1, 0.1], dear)


def test_not_before_its_time() -> None:
    check_hopeless(RULE, (1.0,), [0.0], peers(1.0, 1.0, 1.0))  # the first epoch
    check_hopeless(RULE, (1.0,), [0.0, 0.0], peers(1.0, 1.0))  # two others
    check_hopeless(RULE, None, [0.0, 0.0], peers(1.0, 1.0, 1.0))  # its cost is not known


def test_its_best_epoch_counts_and_a_peer_that_ended_early_keeps_its_last() -> None:
    check_hopeless(RULE, (1.0,), [0.5, 0.1], peers(0.2, 0.4, 0.6))
    short = [Peer((1.0,), (0.4,))] * 3
    with pytest.raises(Hopeless):
        check_hopeless(RULE, (1.0,), [0.1, 0.1, 0.3], short)
    assert best_so_far([math.nan, 0.2, math.inf, 0.1]) == [-math.inf, 0.2, 0.2, 0.2]


def test_what_counts_as_cost() -> None:
    assert costs_of(search("delta_m"), None) == ()
    assert costs_of(search("delta_m", "macs"), None) is None
    assert costs_of(search("delta_m", "latency"), (5.0, 7.0)) == (5.0,)  # its MACs stand for it
    assert costs_of(search("delta_m", "latency", "macs", "parameters"), (5.0, 7.0)) == (5.0, 7.0)
