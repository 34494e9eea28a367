"""The search for layers to leave in float, against gates of known behavior."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactmtl.export.precision.search import FloatLayers, find_float_layers, rank_layers
from compactmtl.verify.result import GateResult

ORDER = tuple(f"layer{i}" for i in range(40))


def gate(value: float) -> GateResult:
    return GateResult(
        gate="accuracy", subject="t.m", bound=0.01, value=value, passed=False, message=f"{value}"
    )


def search(needed: int, evaluations: int, most: int) -> FloatLayers:
    """Of a model whose gate holds once `needed` layers are left in float."""

    def attempt(left: tuple[str, ...]) -> Sequence[GateResult]:
        assert left == ORDER[: len(left)]
        return () if len(left) >= needed else [gate(0.02 + (needed - len(left)) / 100)]

    return find_float_layers(lambda failed: ORDER, attempt, evaluations=evaluations, most=most)


@settings(max_examples=25)
@given(st.integers(0, 40))
def test_with_evaluations_enough_it_finds_the_smallest_number(needed: int) -> None:
    found = search(needed, 100, 40)
    assert found.held
    assert len(found.names) == needed


@settings(max_examples=25)
@given(st.integers(0, 50), st.integers(1, 12), st.integers(0, 40))
def test_it_keeps_its_bounds(needed: int, evaluations: int, most: int) -> None:
    found = search(needed, evaluations, most)
    assert len(found.steps) <= evaluations
    assert all(len(step.left) <= most for step in found.steps)
    assert found.held == any(not step.failed for step in found.steps)
    assert found.names in [step.left for step in found.steps]


def test_where_nothing_holds_the_nearest_is_the_answer() -> None:
    found = search(40, 8, 8)
    assert not found.held
    assert len(found.names) == 8
    assert [len(step.left) for step in found.steps] == [0, 1, 2, 4, 8]


def test_sound_model_is_not_ranked() -> None:
    def rank(failed: Sequence[GateResult]) -> Sequence[str]:
        pytest.fail("ranked for nothing")

    assert find_float_layers(rank, lambda left: (), evaluations=1, most=1).names == ()


def test_layers_are_ranked_by_the_outputs_whose_gates_fail() -> None:
    errors = {"a": {"depth": 0.9, "t": 0.1}, "b": {"depth": 0.1, "t": 0.3}}
    assert rank_layers(errors, [gate(0.1)]) == ["b", "a"]  # subject t.m
    assert rank_layers(errors, []) == ["a", "b"]
