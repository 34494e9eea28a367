"""Gates in words: which kinds were set and held, which failed, which were not set; green only by accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from compactmtl.report.collect import build_report
from compactmtl.report.gates import KINDS, gate_kinds, gates_in_words, not_set, status
from compactmtl.report.model import ExportView, Report
from compactmtl.report.table import Cell, Tone
from compactmtl.train import Run
from compactmtl.verify.gates import BASELINE
from compactmtl.verify.result import GateResult
from tests.support.synthetic_runs import SyntheticRun, add_export
from tests.support.synthetic_verification import verification
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]


def report_of(run: SyntheticRun) -> Report:
    return build_report([cast(Run, run)], None, TinySplits())


def test_every_gate_is_of_one_kind() -> None:
    export = ExportView(target="t", verification=verification())
    kinds = gate_kinds(export)
    assert [kind.name for kind in kinds] == list(KINDS)
    assert sum(len(kind.gates) for kind in kinds) == len(export.verification.gates)


@pytest.mark.parametrize(
    ("passed", "bounds_accuracy", "text", "tone"),
    [
        (True, True, "held: parity, accuracy vs PyTorch, latency", "good"),
        (True, False, "held: parity, latency", ""),
        (False, True, "1 of 14 gates failed: latency", "bad"),
    ],
)
def test_an_export_is_green_only_by_a_gate_on_accuracy(
    passed: bool, bounds_accuracy: bool, text: str, tone: Tone
) -> None:
    export = ExportView(target="t", verification=verification(passed=passed, bounds_accuracy=bounds_accuracy))
    assert status(export) == Cell(text, tone)


def test_what_was_not_set_is_named() -> None:
    export = ExportView(target="t", verification=verification(bounds_accuracy=False))
    assert not_set(export) == Cell("accuracy vs PyTorch, accuracy vs baseline, not slower, size", "missing")


def test_a_gate_against_the_baseline_is_a_kind_of_its_own() -> None:
    found = verification()
    gates = tuple(
        gate.model_copy(update={"against": BASELINE}) if gate.gate == "accuracy" else gate
        for gate in found.gates
    )
    export = ExportView(target="t", verification=found.model_copy(update={"gates": gates}))
    assert "accuracy vs baseline" in status(export).text
    assert "accuracy vs PyTorch" in not_set(export).text


def test_a_verification_without_gates_does_not_hold() -> None:
    export = ExportView(target="t", verification=verification().model_copy(update={"gates": ()}))
    assert not export.holds and status(export) == Cell("no gate was set", "bad")


def test_the_page_is_green_only_by_a_gate_on_accuracy_of_every_export(make_run: MakeRun) -> None:
    run = make_run("one", compacted=True)
    add_export(run, verification(target="a"))
    add_export(run, verification(target="b", bounds_accuracy=False))
    cells = gates_in_words(report_of(run))
    assert cells == [
        Cell("parity held"),
        Cell("accuracy vs PyTorch held, not set on b"),
        Cell("latency held"),
        Cell("no gate on: accuracy vs baseline, not slower, size", "missing"),
    ]


def test_with_accuracy_gates_everywhere_what_held_is_green(make_run: MakeRun) -> None:
    cells = gates_in_words(report_of(make_run("one", compacted=True, exported=True)))
    assert [cell.tone for cell in cells] == ["good", "good", "good", "missing"]


def test_failures_come_first(make_run: MakeRun) -> None:
    run = make_run("one", compacted=True)
    add_export(run, verification(target="a", passed=False))
    add_export(run, verification(target="b"))
    assert gates_in_words(report_of(run))[0] == Cell("latency: 1 failed on a", "bad")


def test_a_gate_that_holds_within_noise_is_not_green(make_run: MakeRun) -> None:
    found = verification(target="a")
    gate = GateResult(
        gate="not_slower",
        subject="compact",
        against="dense",
        bound=1.0,
        value=1.01,
        passed=True,
        warning=True,
        message="compact: 1.01 (0.95 to 1.08) times as fast as dense, no difference beyond noise",
    )
    found = found.model_copy(update={"gates": (*found.gates, gate)})
    assert status(ExportView(target="a", verification=found)) == Cell(
        "held: parity, accuracy vs PyTorch, latency, not slower; within noise: not slower", "missing"
    )
    run = make_run("one", compacted=True)
    add_export(run, found)
    assert Cell("not slower: within noise on a", "missing") in gates_in_words(report_of(run))


def test_without_an_export_no_gate_was_run(make_run: MakeRun) -> None:
    assert gates_in_words(report_of(make_run("one"))) == [Cell("gates not run", "missing")]
