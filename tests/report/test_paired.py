"""A sweep's tables: rows are entries, differences are taken at the same seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from compactmtl.config.recipe import DistillationConfig
from compactmtl.report import Report, delta_cells, latex, markdown, write_collected
from compactmtl.report.delta_formats import grid
from compactmtl.report.paired import paired_cells, sweep_report
from compactmtl.report.table import Cell
from compactmtl.tasks.gain import definition
from compactmtl.train import Run
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe
from tests.support.synthetic_verification import BEST
from tests.support.tiny_val import TinySplits

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


def test_the_baseline_has_no_gain_against_itself(report: Report) -> None:
    assert report.delta_table is not None
    plain = report.delta_table.rows[0]
    assert plain.is_baseline and plain.delta_m is None
    column = next(one for one in grid(report).columns if one.name == "Δm")
    assert column.cells[0] == Cell("baseline")
    for run in report.runs:
        if run.name.startswith("plain"):
            assert run.trained.delta_m == 0  # against itself, not against the mean of all seeds


def test_both_tables_tell_the_same_gain(report: Report) -> None:
    assert report.delta_table is not None and report.sweep is not None
    ours = report.delta_table.rows[1]
    assert ours.delta_m == report.sweep.paired[0].delta_m
    assert ours.delta_seeds == (0, 1)


def sweep_of(make_run: MakeRun, seeds: dict[str, dict[int, float]], baseline: str = "plain") -> Report:
    """A sweep of the age task alone, where an error of twice the baseline's is a gain of -1."""
    runs = {
        entry: [
            cast(Run, make_run(f"{entry}/seed{seed}", make_recipe(("age",), seed=seed), factor=factor))
            for seed, factor in factors.items()
        ]
        for entry, factors in seeds.items()
    }
    return sweep_report("faces", runs, baseline, {}, TinySplits())


def test_the_luck_of_a_seed_drops_out_of_the_deviation(make_run: MakeRun) -> None:
    """Each run is 10 % worse than the baseline of its seed, whose own runs differ by a factor of three."""
    luck = {0: 1.0, 1: 2.0, 2: 3.0}
    report = sweep_of(make_run, {"plain": luck, "ours": {seed: 1.1 * x for seed, x in luck.items()}})
    assert report.delta_table is not None
    gain = report.delta_table.rows[1].delta_m
    assert gain is not None and gain.std is not None
    assert gain.mean == pytest.approx(-0.1) and gain.std == pytest.approx(0, abs=1e-12)


def test_seeds_that_the_baseline_lacks_are_left_out_and_said(make_run: MakeRun) -> None:
    report = sweep_of(make_run, {"plain": {0: 1.0}, "ours": {0: 1.1, 1: 9.0}, "other": {5: 1.0}})
    assert report.delta_table is not None
    _, ours, other = report.delta_table.rows
    assert ours.delta_m is not None and ours.delta_m.values == pytest.approx([-0.1])
    assert ours.delta_m.std is None and ours.delta_seeds == (0,)
    assert other.delta_m is None
    notes = "\n".join(report.notes)
    assert "ours: Δm is over seed 0 alone" in notes
    assert "seed5: no Δm, plain has no finished run of seed 5" in notes


def test_one_seed_has_no_deviation(make_run: MakeRun) -> None:
    report = sweep_of(make_run, {"plain": {0: 1.0}, "ours": {0: 1.1}})
    table = paired_cells(report)
    assert table is not None
    assert "±" not in markdown(delta_cells(report)).split("\n\n")[0]
    assert "±" not in markdown(table).split("\n\n")[0]


def test_a_metric_that_is_no_number_is_shown_as_none(make_run: MakeRun) -> None:
    report = sweep_of(make_run, {"plain": {0: 1.0, 1: 1.0}, "ours": {0: 1.1, 1: math.nan}})
    assert report.delta_table is not None
    ours = report.delta_table.rows[1]
    assert math.isnan(ours.metrics["age"]["mae"].mean) and ours.metrics["age"]["mae"].std is None
    assert ours.delta_seeds == (0,)
    assert "not a number" in markdown(delta_cells(report))
    again = Report.model_validate_json(report.model_dump_json())
    assert again.delta_table is not None
    assert math.isnan(again.delta_table.rows[1].metrics["age"]["mae"].values[1])


def test_the_tables_say_what_delta_m_is(report: Report) -> None:
    told = definition("plain")
    assert told in markdown(delta_cells(report)) and told in latex(report)
    table = paired_cells(report)
    assert table is not None and table.footnote == told


def test_both_tables_are_written(report: Report, tmp_path: Path) -> None:
    first, second = delta_cells(report), paired_cells(report)
    assert second is not None
    assert first.columns[-1] == "training, s ↓"
    assert "(2/2)" in markdown(second) and "plain with the same seed" in second.caption
    page = write_collected(report, [], tmp_path).read_text()
    assert second.caption in page
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report


def taught_report(make_run: MakeRun, teachers: object) -> Report:
    """A dense entry, and one whose runs learned from another run, with what their meta.json says of it."""
    lesson = DistillationConfig(teacher="runs/teacher")
    runs = {"plain": [cast(Run, make_run("plain/seed0", make_recipe(FACE_TASKS)))]}
    recipe = make_recipe(FACE_TASKS).model_copy(update={"distillation": lesson})
    taught = make_run("taught/seed0", recipe)
    if teachers is not None:
        meta = json.loads((taught.path / "meta.json").read_text())
        (taught.path / "meta.json").write_text(json.dumps({**meta, "teachers": teachers}))
    runs["taught"] = [cast(Run, taught)]
    return sweep_report("faces/methods", runs, "plain", {}, TinySplits())


def test_a_teachers_own_training_counts(make_run: MakeRun, tmp_path: Path) -> None:
    teachers = [
        {"path": "/runs/teacher", "epochs": 8, "seconds": 100.0},
        {"path": "/runs/its-own", "epochs": 4, "seconds": 17.0},
    ]
    report = taught_report(make_run, teachers)
    table = delta_cells(report)
    shown = {
        name.rpartition(" ")[0]: [row.cells[index].text for row in table.rows]
        for index, name in enumerate(table.columns)
    }
    assert shown["epochs"] == ["12", "12"] and shown["epochs with teacher"] == ["12", "24"]
    assert shown["training, s"] == ["43", "43"] and shown["training with teacher, s"] == ["43", "160"]
    assert "counts in full" in table.caption
    assert report.delta_table is not None
    plain, taught = report.delta_table.rows
    assert not plain.taught and taught.taught
    page = write_collected(report, [], tmp_path).read_text()
    assert "<code>/runs/teacher</code>: 8 epochs, 1 min 40 s more" in page


def test_a_teacher_whose_cost_an_earlier_version_did_not_note_is_said(
    make_run: MakeRun, tmp_path: Path
) -> None:
    report = taught_report(make_run, None)
    assert any("what its teacher's training cost is unknown" in note for note in report.notes)
    assert report.delta_table is not None
    taught = report.delta_table.rows[1]
    assert taught.taught and taught.all_seconds is None and taught.seconds is not None
    assert "its training's cost is unknown" in write_collected(report, [], tmp_path).read_text()


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
