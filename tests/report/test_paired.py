"""A sweep's tables: rows are entries, differences are taken at the same seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from compactmtl.report import Report, delta_cells, markdown, write_collected
from compactmtl.report.paired import paired_cells, sweep_report
from compactmtl.train import Run
from tests.support.synthetic_runs import BEST, FACE_TASKS, SyntheticRun, TinySplits, make_recipe

MakeRun = Callable[..., SyntheticRun]
PLAIN, OURS = {0: 1.0, 1: 1.10, 2: 0.95}, {0: 0.98, 1: 1.08, 2: 0.96}


@pytest.fixture
def report(make_run: MakeRun) -> Report:
    runs: dict[str, list[Run]] = {}
    for entry, factors in {"plain": PLAIN, "ours": OURS}.items():
        for seed, factor in factors.items():
            if entry == "ours" and seed == 2:
                continue
            run = make_run(f"{entry}/seed{seed}", make_recipe(FACE_TASKS, seed=seed), factor=factor)
            runs.setdefault(entry, []).append(cast(Run, run))
    return sweep_report("faces/methods", runs, "plain", {"ours": [2]}, TinySplits())


def test_a_row_is_an_entry_even_of_one_recipe(report: Report) -> None:
    assert report.delta_table is not None
    assert [row.label for row in report.delta_table.rows] == ["plain", "ours"]
    assert report.delta_table.reference == "plain"
    plain, ours = report.delta_table.rows
    assert plain.seeds == (0, 1, 2) and ours.seeds == (0, 1)
    assert plain.seconds is not None


def test_differences_are_those_of_the_same_seed(report: Report) -> None:
    assert report.sweep is not None
    (row,) = report.sweep.paired
    assert row.seeds == (0, 1)
    differences = [(OURS[seed] - PLAIN[seed]) * BEST["age"]["mae"] for seed in (0, 1)]
    assert row.metrics["age"]["mae"].values == pytest.approx(differences)
    assert row.metrics["age"]["mae"].std == pytest.approx(statistics.stdev(differences))
    assert row.better["age mae"] == 2  # an error that is smaller at both seeds
    assert row.better["gender accuracy"] == 0


def test_delta_m_is_paired_too(report: Report) -> None:
    assert report.sweep is not None
    (row,) = report.sweep.paired
    # age's error and gender's accuracy go with the factor: what one gains the other loses
    assert row.delta_m is not None
    assert row.delta_m.values == pytest.approx((0.0, 0.0), abs=1e-12)


def test_both_tables_are_written(report: Report, tmp_path: Path) -> None:
    first, second = delta_cells(report), paired_cells(report)
    assert second is not None
    assert first.columns[-1] == "training, s ↓"
    assert "(2/2)" in markdown(second) and "plain of the same seed" in second.caption
    page = write_collected(report, [], tmp_path).read_text()
    assert second.caption in page
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report


def test_without_a_baseline_nothing_is_paired(make_run: MakeRun) -> None:
    runs = {"plain": [cast(Run, make_run("plain/seed0", make_recipe(FACE_TASKS)))]}
    report = sweep_report("faces/methods", runs, None, {}, TinySplits())
    assert paired_cells(report) is None
    assert report.delta_reference is None


def test_an_entry_may_be_held_against_another_too(make_run: MakeRun) -> None:
    runs: dict[str, list[Run]] = {}
    for entry, factor in {"plain": 1.0, "mgda": 1.1, "mgda-dgr": 1.05}.items():
        for seed in (0, 1):
            run = make_run(f"{entry}/seed{seed}", make_recipe(FACE_TASKS, seed=seed), factor=factor)
            runs.setdefault(entry, []).append(cast(Run, run))
    report = sweep_report("faces", runs, "plain", {}, TinySplits(), {"mgda-dgr": "mgda", "gone": "mgda"})
    table = paired_cells(report)
    assert table is not None
    assert [row.label for row in table.rows] == ["mgda", "mgda-dgr", "mgda-dgr, against mgda"]
    assert report.sweep is not None
    own = report.sweep.paired[2]
    assert own.metrics["age"]["mae"].values == pytest.approx([-0.05 * BEST["age"]["mae"]] * 2)
    assert own.better["age mae"] == 2
