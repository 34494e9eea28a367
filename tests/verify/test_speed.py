"""What latencies say of each other: by rounds, with a band, and in words that can't turn a slowdown around."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.verify.result import LatencyResult
from compactmtl.verify.speed import (
    artifact_speed,
    compare,
    in_words,
    slowdowns,
    speed_of,
    speeds,
    told,
    variation,
)
from tests.support.synthetic_verification import FLOAT, SLOW_INT8, stats, timed

TIMES = st.lists(st.floats(0.01, 100), min_size=10, max_size=40)


def of_samples(**samples: list[float]) -> LatencyResult:
    found = timed(dict.fromkeys(samples, 1.0))
    return found.model_copy(
        update={
            "stats": {
                name: one.model_copy(
                    update={"samples_ms": tuple(samples[name]), "median_ms": float(np.median(samples[name]))}
                )
                for name, one in found.stats.items()
            }
        }
    )


@pytest.mark.slow
@given(one=TIMES, factor=st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_a_model_that_takes_a_multiple_in_every_round_is_told_so(one: list[float], factor: float) -> None:
    """Whatever the machine does from round to round."""
    found = speed_of(of_samples(dense=one, compact=[factor * time for time in one]), "compact")
    assert found.ratio == found.low == found.high == 1 / factor
    assert found.verdict == ("faster" if factor < 1 else "slower")


@pytest.mark.slow
@given(one=TIMES, other=TIMES)
def test_verdicts_turn_around_with_the_sides(one: list[float], other: list[float]) -> None:
    size = min(len(one), len(other))
    latency = of_samples(dense=one[:size], compact=other[:size])
    there, back = speed_of(latency, "compact"), speed_of(latency, "dense", "compact")
    opposite = {"faster": "slower", "slower": "faster"}
    # percentiles between two rounds are interpolated, and a ratio's reciprocal is not linear: a band's end may cross 1
    if back.verdict != "same":
        assert there.verdict in (opposite[back.verdict], "same")


def test_a_band_that_holds_1_tells_no_difference() -> None:
    found = speed_of(of_samples(dense=[1.0] * 10, compact=[0.8] * 6 + [1.2] * 4), "compact")
    assert found.ratio > 1 and found.verdict == "same"
    assert in_words(found) == "no difference beyond noise"
    assert told(found) == "no difference beyond noise from dense"


@pytest.mark.parametrize(
    ("rounds", "why"), [(1, "1 round: no band"), (2, "2 rounds: no band"), (9, "9 rounds: no band")]
)
def test_few_rounds_have_no_verdict(rounds: int, why: str) -> None:
    found = speed_of(of_samples(dense=[2.0] * rounds, compact=[1.0] * rounds), "compact")
    assert found.verdict == "unknown" and why in in_words(found)


def test_what_was_not_timed_in_the_same_rounds_is_not_paired() -> None:
    found = speed_of(of_samples(dense=[2.0] * 8, compact=[1.0] * 9), "compact")
    assert (found.rounds, found.ratio, found.verdict) == (0, 2.0, "unknown")
    assert "not paired" in in_words(found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_time_that_is_none_gives_no_ratio(bad: float) -> None:
    found = speed_of(of_samples(dense=[2.0] * 5, compact=[1.0, 1.0, bad, 1.0, 1.0]), "compact")
    assert math.isnan(found.ratio) and found.verdict == "unknown"
    assert in_words(found) == "not a number"


def test_int8_is_held_against_both_float32_forms() -> None:
    latency = timed(SLOW_INT8, "int8")
    assert {(one.name, one.against) for one in speeds(latency)} == {
        ("compact", "dense"),
        ("dense fp32", "dense"),
        ("compact fp32", "dense"),
        ("dense", "dense fp32"),
        ("compact", "dense fp32"),
        ("compact", "compact fp32"),
    }
    found = artifact_speed(latency)
    assert found is not None and (found.against, found.verdict) == ("dense fp32", "faster")
    assert [(one.against, one.verdict) for one in slowdowns(latency)] == [("compact fp32", "slower")]


def test_int8_without_the_dense_float32_is_held_against_its_own() -> None:
    times = {name: ms for name, ms in SLOW_INT8.items() if name != "dense fp32"}
    found = artifact_speed(timed(times, "int8"))
    assert found is not None and (found.against, found.verdict) == ("compact fp32", "slower")


def test_float32_is_held_against_the_dense_model() -> None:
    found = artifact_speed(timed(FLOAT))
    assert found is not None and found.against == "dense"
    assert artifact_speed(timed({"model": 4.0})) is None


def test_one_outlier_is_no_noise_and_a_busy_machine_is() -> None:
    calm = [4.0 + 0.001 * number for number in range(99)]
    assert variation([*calm, 700.0]) < 0.05
    assert variation([4.0, 6.0] * 50) == pytest.approx(0.4)
    assert variation([]) == 0


def test_the_same_samples_compare_as_no_difference() -> None:
    one = stats("dense", 4.0, 0)
    assert compare(one, one.model_copy(update={"name": "copy"})).verdict == "same"
