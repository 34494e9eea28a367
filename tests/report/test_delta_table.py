"""The Δm table: grouping by recipe, mean and deviation over seeds, single-task baselines, and its four forms."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from compactmtl.errors import ConfigError
from compactmtl.report import Report, build_report, delta_cells, latex, markdown, plain, write_collected
from compactmtl.report.delta_formats import grid, shows_more
from compactmtl.report.reference import Single
from compactmtl.report.rows import DeltaRow, Spread
from compactmtl.train import Run
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe
from tests.support.synthetic_verification import BEST
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]


def report_of(runs: list[SyntheticRun], baseline: SyntheticRun | Single | None = "single") -> Report:
    return build_report(cast(list[Run], runs), cast("Run | Single | None", baseline), TinySplits())


@pytest.fixture
def faces(make_run: MakeRun) -> list[SyntheticRun]:
    """Two tasks: each alone over two seeds, and a multi-task recipe over three."""
    runs = []
    for task in FACE_TASKS:
        for seed, factor in ((0, 0.98), (1, 1.02)):
            recipe = make_recipe((task,), seed=seed)
            runs.append(make_run(f"{task}-{seed}", recipe, factor=factor, recipe_name="faces/single"))
    for seed, factor in ((0, 1.0), (1, 1.01), (2, 1.05)):
        recipe = make_recipe(FACE_TASKS, seed=seed)
        runs.append(make_run(f"multi-{seed}", recipe, factor=factor, recipe_name="faces/dense"))
    return runs


def rows_of(report: Report) -> tuple[DeltaRow, ...]:
    assert report.delta_table is not None
    return report.delta_table.rows


def test_seeds_of_a_recipe_make_one_row_against_the_single_task_means(faces: list[SyntheticRun]) -> None:
    single, multi = rows_of(report_of(faces))
    assert multi.runs == ("multi-0", "multi-1", "multi-2")
    assert multi.seeds == (0, 1, 2)
    accuracy = multi.metrics["gender"]["accuracy"]
    values = [factor * BEST["gender"]["accuracy"] for factor in (1.0, 1.01, 1.05)]
    assert accuracy.mean == pytest.approx(statistics.fmean(values))
    assert accuracy.std == pytest.approx(statistics.stdev(values))  # of a sample: divided by n - 1
    # the single-task mean of every metric is BEST itself; age's MAE gets worse by as much as gender gets better
    assert multi.delta_m is not None
    assert multi.delta_m.values == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert single.metrics["age"]["mae"].mean == pytest.approx(BEST["age"]["mae"])
    assert single.delta_m is None


def test_delta_m_of_each_seed_is_its_mean_gain_over_tasks(make_run: MakeRun) -> None:
    single = make_run("gender", make_recipe(("gender",)), factor=1.0)
    other = make_run("age", make_recipe(("age",)), factor=1.1)  # a tenth worse than the multi-task runs'
    runs = [make_run(f"multi-{seed}", make_recipe(FACE_TASKS, seed=seed), recipe_name="m") for seed in (0, 1)]
    (_, multi) = rows_of(report_of([*runs, single, other]))
    assert multi.delta_m == Spread.of([(1 - 1 / 1.1) / 2] * 2)


def test_the_single_task_row_adds_up_the_sizes_of_its_networks(faces: list[SyntheticRun]) -> None:
    report = report_of(faces)
    single = rows_of(report)[0]
    sizes = {run.name: run.trained.size for run in report.runs}
    age, gender = sizes["age-0"], sizes["gender-0"]
    assert age is not None
    assert gender is not None
    assert single.parameters is not None
    assert single.parameters.mean == age.parameters + gender.parameters


def test_runs_of_a_recipe_with_other_values_are_another_row_named_by_them(make_run: MakeRun) -> None:
    short = make_recipe(FACE_TASKS, train={"epochs": 3})
    runs = [make_run("long", make_recipe(FACE_TASKS)), make_run("short", short)]
    labels = [row.label for row in rows_of(report_of(runs, None))]
    assert labels == ["scenes/dense train.epochs=15", "scenes/dense train.epochs=3"]


def test_where_the_data_lies_and_who_computes_do_not_split_a_recipe(make_run: MakeRun) -> None:
    here = make_recipe(FACE_TASKS, train={"threads": 1})
    there = make_recipe(FACE_TASKS, seed=1, train={"threads": 2})
    (row,) = rows_of(report_of([make_run("here", here), make_run("there", there)], None))
    assert row.runs == ("here", "there")


def test_a_baseline_run_is_the_first_row_and_the_rest_of_its_seeds_another(make_run: MakeRun) -> None:
    baseline, *others = (make_run(f"dense-{seed}", make_recipe(seed=seed)) for seed in (0, 1, 2))
    report = report_of([baseline, *others], baseline)
    first, second = rows_of(report)
    assert (first.label, first.delta_m) == ("dense-0", None)
    assert second.runs == ("dense-1", "dense-2")
    assert second.delta_m == Spread.of([0.0, 0.0])


def test_seeds_are_compared_in_the_last_form_that_all_of_them_reached(make_run: MakeRun) -> None:
    runs = [
        make_run("a", make_recipe(seed=0), compacted=True, exported=True),
        make_run("b", make_recipe(seed=1), compacted=True),
    ]
    (row,) = rows_of(report_of(runs, None))
    assert row.form == "compact"
    assert row.macs == Spread.of([29_491, 29_491])


def test_runs_that_share_a_seed_are_told(make_run: MakeRun) -> None:
    report = report_of([make_run("one"), make_run("again")], None)
    assert any("share a seed (0, 0)" in note for note in report.notes)


def test_single_task_runs_of_tasks_that_nobody_shares_are_left_out(
    faces: list[SyntheticRun], make_run: MakeRun
) -> None:
    depth = make_run("depth", make_recipe(("depth",)))
    assert report_of([*faces, depth]).single_task_runs == ("age-0", "age-1", "gender-0", "gender-1")


def test_a_task_without_a_single_task_run_is_an_error_that_names_it(faces: list[SyntheticRun]) -> None:
    with pytest.raises(ConfigError, match="no run of gender alone") as error:
        report_of([run for run in faces if not run.name.startswith("gender")])
    assert "--task gender" in error.value.hint


@pytest.mark.parametrize(("kept", "message"), [("multi", "every run has several"), ("age", "a single task")])
def test_both_kinds_of_run_are_needed(faces: list[SyntheticRun], kept: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        report_of([run for run in faces if run.name.startswith(kept)])


def test_two_experiments_of_one_task_alone_are_no_baseline(
    faces: list[SyntheticRun], make_run: MakeRun
) -> None:
    longer = make_run("longer", make_recipe(("age",), train={"epochs": 30}))
    with pytest.raises(ConfigError, match=r"train\.epochs: 15 and 30"):
        report_of([*faces, longer])


def test_every_form_holds_mean_and_deviation_and_marks_the_best(
    faces: list[SyntheticRun], tmp_path: Path
) -> None:
    report = report_of(faces)
    page = write_collected(report, [], tmp_path).read_text()
    text = "90.88 ± 2.36"  # the mean of 0.891 × (1, 1.01, 1.05), in percent
    assert text in (tmp_path / "delta.md").read_text()
    assert text in plain(delta_cells(report))
    assert f'best">{text}' in page
    assert r"\textbf{90.88 $\pm$ 2.36}" in (tmp_path / "delta.tex").read_text()
    stored = json.loads((tmp_path / "report.json").read_text())["delta_table"]
    assert stored["rows"][1]["metrics"]["gender"]["accuracy"]["values"] == pytest.approx(
        [0.891, 0.89991, 0.93555]
    )
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report


def test_latex_is_rectangular_and_escaped(faces: list[SyntheticRun]) -> None:
    lines = latex(report_of(faces)).splitlines()
    columns = len(re.fullmatch(r"\\begin\{tabular\}\{(l r*|lr+)\}", lines[3])[1])  # type: ignore[index]
    body = [line for line in lines[lines.index("\\midrule") + 1 :] if line.endswith("\\\\")]
    assert len(body) == 2
    assert all(line.count("&") == columns - 1 for line in body)
    outside = re.sub(r"\$[^$]*\$", "", "\n".join(line for line in lines if not line.startswith("%")))
    assert not re.search(r"(?<!\\)[%#_±↑Δ]", outside)
    assert "\\cmidrule(lr){2-2} \\cmidrule(lr){3-3}" in outside


def test_only_metrics_that_papers_count_are_columns(make_run: MakeRun) -> None:
    found = grid(report_of([make_run("one", make_recipe(FACE_TASKS))], None))
    names = [(column.group, column.name) for column in found.columns]
    assert names == [("age", "MAE"), ("gender", "accuracy"), ("", "parameters"), ("", "MACs")]


def test_decimals_follow_the_largest_value(make_run: MakeRun) -> None:
    report = report_of([make_run("one"), make_run("two", make_recipe(seed=1))], None)
    cells = {f"{column.group} {column.name}": column.cells[0].text for column in grid(report).columns}
    assert cells["depth abs err"] == "0.2130 ± 0.0000"  # as papers print 0.3771
    assert cells["normals mean angle"] == "12.31 ± 0.00"
    assert cells["segmentation mIoU"] == "71.20 ± 0.00"


def test_one_run_a_recipe_says_no_more_than_the_comparison(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    dense, compact = pair
    assert not shows_more(report_of([compact], dense))
    assert "±" not in markdown(delta_cells(report_of([compact], dense)))


def test_exports_say_how_much_faster_they_are_where_all_runs_have_one(make_run: MakeRun) -> None:
    """Paired in each run's own export, so that runs exported at different times compare."""
    recipes = [make_recipe(seed=seed) for seed in (0, 1)]
    one, two = (
        make_run(f"run-{seed}", recipe, compacted=True, exported=True) for seed, recipe in enumerate(recipes)
    )
    (row,) = rows_of(report_of([one, two], None))
    assert row.faster is not None and row.faster.values[0] == row.faster.values[1]
    assert row.faster.mean == pytest.approx(8.4 / 4.1, rel=0.05)  # samples scatter by a few percent
    assert (row.faster_than, row.verdict) == ("dense", "faster")
    assert (
        "speed: latency of dense over that of the export" in delta_cells(report_of([one, two], None)).caption
    )
    bare = make_run("bare", make_recipe(seed=2), compacted=True)
    (mixed,) = rows_of(report_of([one, two, bare], None))
    assert mixed.faster is None
