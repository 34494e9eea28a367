"""What a fit says of its budget: in the budget's own measure, and with a mend in the option that was given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compactmtl.errors import GateError
from compactmtl.fit import Budget, Outcome, plan_road
from compactmtl.verify.result import GateResult

WORDS = ("data.size=[16,24]", "tasks.depth.kind=depth", "sparsity={}")
SURGERY = {"macs": {"before": 100, "after": 90}, "parameters": {"before": 100, "after": 70}}


def gate(value: float, bound: float, against: str = "") -> GateResult:
    passed = value >= bound if against else value <= bound
    message = f"{value} {'times as fast as' if against else 'ms of'} {against or bound}"
    return GateResult(
        gate="latency",
        subject="compact",
        against=against,
        bound=bound,
        value=value,
        passed=passed,
        message=message,
    )


def outcome(
    tmp_path: Path, budget: Budget | None, *gates: GateResult, words: tuple[str, ...] = ()
) -> Outcome:
    recipe = tmp_path / "base.yaml"
    recipe.write_text("data: {name: scenes}\n")
    road = plan_road(str(recipe), (*WORDS, *words), budget=budget)
    run: Any = type("Run", (), {"path": Path("runs/base")})()  # of which its place alone is told
    found: Any = type("Found", (), {"gates": gates})()  # and of a verification its gates
    return Outcome(road, run, None, SURGERY, found, Path("report.html"))


@pytest.mark.parametrize(
    ("budget", "gates", "mend"),
    [
        # 5 ms asked, 6 measured: ask for five sixths.
        (Budget("latency-ms", 5.0), [gate(6.0, 5.0)], "--latency-ms 4.17"),
        # The target's own bound is the stricter one.
        (Budget("latency-ms", 5.0), [gate(4.0, 3.0)], "--latency-ms 3.75"),
        # A target's speedup is a ratio, whatever the budget is of: 1.5 times where 2 are asked needs 3/4 of the time.
        (Budget("latency-ms", 5.0), [gate(4.0, 5.0), gate(1.5, 2.0, "dense")], "--latency-ms 3.75"),
        (Budget("speedup", 2.0), [gate(1.6, 2.0, "dense")], "--speedup 2.5"),
        # And milliseconds are none: 8 ms where 4 are allowed needs half the time.
        (Budget("speedup", 2.0), [gate(2.1, 2.0, "dense"), gate(8.0, 4.0)], "--speedup 4"),
        # The one that is missed by most decides.
        (Budget("speedup", 2.0), [gate(1.6, 2.0, "dense"), gate(1.0, 2.0, "dense fp32")], "--speedup 4"),
    ],
)
def test_a_late_network_is_asked_for_less_in_the_budgets_own_measure(
    tmp_path: Path, budget: Budget, gates: list[GateResult], mend: str
) -> None:
    with pytest.raises(GateError) as caught:
        outcome(tmp_path, budget, *gates).raise_failed()
    assert re.search(rf"\({re.escape(mend)}\)", caught.value.hint)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_where_nothing_was_measured_no_number_is_made_up(tmp_path: Path, value: float) -> None:
    late = gate(value, 2.0, "dense").model_copy(update={"passed": False})
    with pytest.raises(GateError) as caught:
        outcome(tmp_path, Budget("speedup", 2.0), late).raise_failed()
    assert "--speedup" not in caught.value.hint and "measure again" in caught.value.hint


def test_the_budget_is_held_by_the_gates_of_its_kind(tmp_path: Path) -> None:
    found = outcome(tmp_path, Budget("latency-ms", 5.0), gate(4.0, 5.0), gate(1.5, 2.0, "dense"))
    assert dict(found._budget())["budget"] == "latency.ms 5 on onnxruntime-cpu: met"
    assert not found.passed


def test_a_missed_budget_says_what_it_is_of(tmp_path: Path) -> None:
    """10 % of the MACs and 30 % of the parameters are gone."""
    section = "sparsity.selective.parameter_reduction=0.5"
    with pytest.raises(GateError, match=r"parameter_reduction: 30.0% of parameters gone, 50.0% asked for"):
        outcome(tmp_path, None, words=(section,)).raise_failed()
    with pytest.raises(GateError, match=r"mac_reduction: 10.0% of MACs gone, 50.0% asked for"):
        outcome(tmp_path, Budget("macs-reduction", 0.5)).raise_failed()
    assert outcome(tmp_path, None, words=("sparsity.selective.parameter_reduction=0.3",)).passed
