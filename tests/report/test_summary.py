"""What counts first: budget, parity, accuracy and latency, each with what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from compactmtl.report.budget import Budget
from compactmtl.report.collect import build_report
from compactmtl.report.delta_formats import delta_cells
from compactmtl.report.deployment import deployments
from compactmtl.report.headline import headline_reason
from compactmtl.report.model import Report
from compactmtl.report.noise import speed_noise
from compactmtl.report.summary import (
    Fact,
    accuracy_fact,
    budget_fact,
    latency_fact,
    parity_fact,
    summary_table,
)
from compactmtl.report.table import Cell, Table, comparison
from compactmtl.train import Run
from compactmtl.verify.speed import speed_of
from tests.support.synthetic_runs import SyntheticRun, add_export, make_recipe
from tests.support.synthetic_verification import SLOW_INT8, scaled, timed, verification
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]
Pair = tuple[SyntheticRun, SyntheticRun]


def report_of(runs: list[SyntheticRun], baseline: SyntheticRun | None = None) -> Report:
    return build_report(cast(list[Run], runs), cast(Run | None, baseline), TinySplits())


def shrinking(reduction: float, **options: Any) -> dict[str, Any]:
    return {"sparsity": {"selective": {"mac_reduction": reduction, **options}}}


@pytest.mark.parametrize(
    ("asked", "answer", "tone"),
    [(0.6, "yes", "good"), (0.55, "yes", "good"), (0.7, "10 points short", "bad")],
)
def test_the_budget_is_held_against_what_surgery_removed(
    asked: float, answer: str, tone: str, make_run: MakeRun
) -> None:
    run = make_run("one", make_recipe(**shrinking(asked)), compacted=True)  # surgery removes 60.0 %
    fact = budget_fact(report_of([run]).subjects[0])
    assert (fact.answer, fact.tone) == (answer, tone)
    assert (
        f"60.0 % of the MACs removed, {100 * asked:.1f} % asked (sparsity.selective.mac_reduction)"
        in fact.details
    )


def test_a_budget_before_surgery_is_not_met_and_not_missed(make_run: MakeRun) -> None:
    (view,) = report_of([make_run("one", make_recipe(**shrinking(0.5)))]).subjects
    assert view.budget == Budget(
        key="sparsity.selective.mac_reduction", measure="macs", asked=0.5, reached=None
    )
    assert budget_fact(view).answer == "not run"


def test_without_a_target_of_sparsity_and_gates_no_budget_was_set(make_run: MakeRun) -> None:
    (view,) = report_of([make_run("one")]).subjects
    assert view.budget is None
    assert (budget_fact(view).answer, budget_fact(view).tone) == ("none set", "missing")


def test_a_gate_on_latency_is_part_of_the_budget(make_run: MakeRun) -> None:
    run = make_run("one", make_recipe(**shrinking(0.5)), compacted=True, exported=True, passed=False)
    fact = budget_fact(report_of([run]).subjects[0])
    assert (fact.answer, fact.tone) == ("a gate failed", "bad")
    assert any("not as much faster as asked" in detail for detail in fact.details)


def test_parity_is_of_the_headline_and_tells_every_target(pair: Pair) -> None:
    add_export(pair[1], verification(target="other"))
    fact = parity_fact(report_of([pair[1]], pair[0]).subjects[0])
    assert (fact.answer, fact.tone) == ("yes", "good")
    assert sum("3.0e-07 of the range at most, bound 1e-04" in detail for detail in fact.details) == 2


def test_parity_that_failed_on_any_target_is_no(pair: Pair) -> None:
    found = verification(target="other")
    broken = found.gates[0].model_copy(update={"passed": False})
    add_export(pair[1], found.model_copy(update={"gates": (broken, *found.gates[1:]), "passed": False}))
    assert parity_fact(report_of([pair[1]], pair[0]).subjects[0]).answer == "no"


def test_an_artifact_without_a_bound_on_parity_is_not_called_equal(make_run: MakeRun) -> None:
    run = make_run("one", compacted=True)
    found = verification(target="int8")
    add_export(run, found.model_copy(update={"gates": tuple(g for g in found.gates if g.gate != "parity")}))
    fact = parity_fact(report_of([run]).subjects[0])
    assert (fact.answer, fact.tone) == ("not bounded", "")


def test_one_seed_is_said_to_be_one(pair: Pair) -> None:
    report = report_of([pair[1]], pair[0])
    fact = accuracy_fact(report.subjects[0], report)
    assert fact.question == "Δm against dense, accuracy of all tasks"
    assert fact.details[0] == "one seed (0): how far another seed would move it is unknown"


def test_several_seeds_give_a_spread(make_run: MakeRun) -> None:
    dense = make_run("dense")
    runs = [make_run(f"s{seed}", make_recipe(seed=seed), factor=1 + 0.01 * seed) for seed in (1, 2, 3)]
    report = report_of(runs, dense)
    assert "± " in accuracy_fact(report.subjects[0], report).details[0]
    (cell, *_) = [row.cells[2] for row in summary_table(report).rows]
    assert cell.noise.endswith("over 3 seeds")


def test_without_a_baseline_no_accuracy_is_claimed(make_run: MakeRun) -> None:
    report = report_of([make_run("one", compacted=True, exported=True)])
    assert accuracy_fact(report.subjects[0], report) == Fact(
        "Δm against dense fp32, accuracy of all tasks",
        "no baseline",
        "missing",
        ("name one with --baseline",),
    )


def test_int8_is_held_against_the_dense_model_in_float32(make_run: MakeRun) -> None:
    run = make_run("one", compacted=True)
    add_export(run, verification(latency=timed(SLOW_INT8, "int8"), target="int8"))
    fact = latency_fact(report_of([run]).subjects[0])
    assert fact.answer.endswith("faster") and fact.tone == ""  # slower than its own float32 form
    assert any("of dense fp32" in detail for detail in fact.details)
    assert any("slower than compact fp32" in detail for detail in fact.details)


def test_a_slower_ratio_and_its_band_are_read_the_same_way() -> None:
    speed = speed_of(timed({"dense": 4.0, "compact": 8.0}), "compact")
    low, high = (float(part) for part in speed_noise(speed).removeprefix("10–90 %: ").rstrip("×").split("–"))
    assert low < 1 / speed.ratio < high


def deltas(table: Table) -> list[Cell]:
    """The cells that are differences between runs: signed shares and times faster or slower."""
    found = [cell for row in table.rows for cell in row.cells]
    words = ("faster", "slower", "beyond noise")
    signed = [cell for cell in found if cell.text.startswith(("+", "−")) and "fewer" not in cell.text]
    return [
        *signed,
        *(cell for cell in found if any(word in cell.text.replace("not slower", "") for word in words)),
    ]


def test_noise_stands_beside_every_difference(pair: Pair) -> None:
    add_export(pair[1], verification(latency=timed(SLOW_INT8, "int8"), target="int8", baseline=scaled(1.0)))
    report = report_of([pair[1]], pair[0])
    shown = deployments(report)
    assert shown is not None
    for table in (comparison(report), shown, delta_cells(report)):
        assert deltas(table)
        assert all(cell.noise or "±" in cell.text for cell in deltas(table))


def test_the_headline_and_why(make_run: MakeRun) -> None:
    recipe = make_recipe(targets=["z-first", "int8"])
    run = make_run("one", recipe, compacted=True)
    for found in (
        verification(target="a-failed", passed=False),
        verification(target="b-float"),
        verification(target="int8", latency=timed(SLOW_INT8, "int8")),
        verification(target="z-first"),
    ):
        add_export(run, found)
    assert headline_reason(report_of([run]).subjects[0]) == (
        "Headline: z-first, of 3 targets whose gates all held, the first in the recipe's targets of those in float32, "
        "where dense and compact differ by surgery alone. Passed over: a-failed failed 1 gate."
    )


def test_a_single_target_is_the_headline_if_it_held(make_run: MakeRun) -> None:
    held = make_run("held", compacted=True, exported=True)
    failed = make_run("failed", compacted=True, exported=True, passed=False)
    assert headline_reason(report_of([held]).subjects[0]) == (
        "Headline: onnxruntime-cpu, the only target exported."
    )
    assert headline_reason(report_of([failed]).subjects[0]) == (
        "No target is the headline. Passed over: onnxruntime-cpu failed 1 gate."
    )
