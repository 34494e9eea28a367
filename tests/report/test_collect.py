"""Building the report's data model from run folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.graph import cost
from compactmtl.report import Report, build_report
from compactmtl.report.read import Surgery
from compactmtl.tasks.gain import delta_m
from compactmtl.train import Run
from compactmtl.verify.accuracy import evaluate, torch_runner
from tests.support.synthetic_runs import SURGERY, SyntheticRun, make_recipe
from tests.support.synthetic_verification import scaled
from tests.support.tiny_val import TinySplits

Pair = tuple[SyntheticRun, SyntheticRun]
MakeRun = Callable[..., SyntheticRun]


def build(runs: list[SyntheticRun], baseline: SyntheticRun | None, splits: TinySplits) -> Report:
    return build_report(cast(list[Run], runs), cast(Run | None, baseline), splits)


def test_a_run_that_went_all_the_way_needs_no_evaluation(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    report = build([compact], dense, splits)
    run = report.subjects[0]
    assert [stage.form for stage in run.stages] == ["trained", "compact", "exported"]
    assert [stage.metrics for stage in run.stages] == [scaled(0.99), scaled(0.99), scaled(0.98)]
    assert splits.loads == 0


def test_sizes_come_from_surgery_and_else_from_the_model(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    report = build([compact], dense, splits)
    assert report.baseline_run is not None
    measured = cost(dense.load_plain(), (torch.zeros(1, 3, 48, 64),))
    size = report.baseline_run.trained.size
    assert size is not None
    assert (size.parameters, size.macs) == (measured.parameters, measured.macs)
    smallest = report.subjects[0].smallest
    assert smallest is not None
    assert (smallest.parameters, smallest.macs) == (13, 29_491)


def test_delta_m_is_of_each_form_against_the_named_baseline(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    report = build([compact], dense, splits)
    assert report.delta_reference == "dense"
    expected = [delta_m(scaled(factor), scaled(1.0), compact.tasks) for factor in (0.99, 0.99, 0.98)]
    assert [stage.delta_m for stage in report.subjects[0].stages] == pytest.approx(expected)


def test_without_a_baseline_delta_m_is_against_single_task_numbers(
    make_run: MakeRun, splits: TinySplits
) -> None:
    recipe = make_recipe(single_task=scaled(1.0))
    report = build([make_run("one", recipe, factor=0.9)], None, splits)
    assert report.delta_reference == "the recipe's single-task numbers"
    assert report.runs[0].trained.delta_m is not None


def test_without_any_reference_there_is_no_delta_m(make_run: MakeRun, splits: TinySplits) -> None:
    report = build([make_run("one")], None, splits)
    assert report.delta_reference is None
    assert report.runs[0].trained.delta_m is None


def test_the_baseline_counts_as_trained_even_if_it_was_compacted(
    make_run: MakeRun, splits: TinySplits
) -> None:
    dense = make_run("dense", compacted=True, exported=True)
    other = make_run("other", factor=1.1)
    report = build([other], dense, splits)
    assert report.subjects[0].trained.delta_m == pytest.approx(delta_m(scaled(1.1), scaled(1.0), other.tasks))


def test_a_form_that_nothing_measured_is_evaluated(make_run: MakeRun, splits: TinySplits) -> None:
    run = make_run("one", compacted=True)
    report = build([run], None, splits)
    stage = report.runs[0].stages[1]
    expected = evaluate(torch_runner(run.load_compact(), "cpu"), splits.loader(run.recipe), run.tasks)
    assert stage.metrics == expected


def test_metrics_of_a_holdout_are_not_taken_for_those_of_val(make_run: MakeRun, splits: TinySplits) -> None:
    data = {"name": "scenes", "size": (48, 64), "holdout": 0.1, "select_on": "holdout"}
    run = make_run("one", make_recipe(data=data))
    report = build([run], None, splits)
    expected = evaluate(torch_runner(run.load_plain(), "cpu"), splits.loader(run.recipe), run.tasks)
    assert report.runs[0].trained.metrics == expected != scaled(1.0)


def test_where_the_data_is_missing_the_form_is_not_run_and_a_note_says_so(make_run: MakeRun) -> None:
    report = build([make_run("one", compacted=True)], None, TinySplits(missing=True))
    assert report.runs[0].stages[1].metrics is None
    assert any("there is no folder nowhere" in note for note in report.notes)


def test_an_export_of_another_plan_is_not_shown_as_the_run(make_run: MakeRun, splits: TinySplits) -> None:
    run = make_run("one", compacted=True, exported=True)
    (run.path / "compact" / "plan.json").write_text('{"another": 1}')
    report = build([run], None, splits)
    assert report.runs[0].stages[2].metrics is None
    assert report.runs[0].stages[1].metrics != scaled(0.99)
    assert any("export again" in note for note in report.notes)


def test_accuracy_over_a_part_of_val_is_noted_and_not_taken_for_the_whole(
    make_run: MakeRun, splits: TinySplits
) -> None:
    run = make_run("one", compacted=True, exported=True)
    path = run.path / "export" / "onnxruntime-cpu" / "bundle.json"
    bundle = json.loads(path.read_text())
    bundle["target"]["accuracy"]["samples"] = 8
    path.write_text(json.dumps(bundle))
    report = build([run], None, splits)
    assert any("8 samples" in note for note in report.notes)
    assert report.runs[0].stages[1].metrics != scaled(0.99)


def test_an_epoch_that_was_run_again_counts_once(make_run: MakeRun, splits: TinySplits) -> None:
    run = make_run("one")
    lines = (run.path / "log.jsonl").read_text().splitlines()
    again = {**json.loads(lines[3]), "lr": 0.5}
    (run.path / "log.jsonl").write_text("\n".join([*lines[:4], json.dumps(again), *lines[4:]]) + "\n")
    epochs = build([run], None, splits).runs[0].epochs
    assert [epoch.epoch for epoch in epochs] == list(range(1, 13))
    assert epochs[2].lr == 0.5


def test_runs_of_one_name_are_told_apart_by_their_folders(make_run: MakeRun, splits: TinySplits) -> None:
    report = build([make_run("a/compact"), make_run("b/compact")], None, splits)
    assert [run.name for run in report.runs] == ["a/compact", "b/compact"]


def test_a_baseline_among_the_runs_is_shown_once(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    report = build([dense, compact], dense, splits)
    assert [run.name for run in report.runs] == ["dense", "compact"]


def test_a_baseline_alone_is_refused(pair: Pair, splits: TinySplits) -> None:
    with pytest.raises(ConfigError, match="only run"):
        build([pair[0]], pair[0], splits)


def test_runs_on_different_data_are_refused(make_run: MakeRun, splits: TinySplits) -> None:
    faces = make_run("faces", make_recipe(data={"name": "utkface", "size": (48, 64)}))
    with pytest.raises(ConfigError, match="utkface"):
        build([faces], make_run("rooms"), splits)


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"macs": {"before": 1}}'], ids=["not JSON", "not an object", "a key missing"]
)
def test_a_damaged_file_is_named(make_run: MakeRun, splits: TinySplits, damage: str) -> None:
    run = make_run("one", compacted=True)
    path = run.path / "compact" / "surgery.json"
    path.write_text(damage)
    with pytest.raises(ArtifactError, match=r"surgery\.json"):
        build([run], None, splits)


def test_commands_are_those_that_were_run(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    commands: Any = build([compact], dense, splits).subjects[0].provenance.commands
    assert [command.split()[1] for command in commands] == ["train", "compact", "export"]
    assert f"--baseline {dense.path}" in commands[2]


def test_the_report_survives_json(pair: Pair, splits: TinySplits) -> None:
    dense, compact = pair
    report = build([compact], dense, splits)
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_unsteady_latencies_are_noted(make_run: MakeRun, splits: TinySplits) -> None:
    run = make_run("one", compacted=True, exported=True)
    assert not build([run], None, splits).notes
    path = run.path / "export" / "onnxruntime-cpu" / "verification.json"
    found = json.loads(path.read_text())
    samples = found["latency"]["stats"]["compact"]["samples_ms"]
    samples[7] = 60 * samples[7]  # one interrupted run of a hundred: the middle half knows nothing of it
    path.write_text(json.dumps(found))
    assert not build([run], None, splits).notes
    found["latency"]["stats"]["compact"]["samples_ms"] = [4.0, 5.0, 6.0, 7.0] * 25
    path.write_text(json.dumps(found))
    (note,) = build([run], None, splits).notes
    assert "quartiles is 27 % of the median" in note


@pytest.mark.parametrize("key", ["kept_whole", "not_pruned"])
def test_layers_that_were_not_pruned_are_read_under_either_key(key: str) -> None:
    """Files of earlier versions say kept_whole."""
    content = {name: value for name, value in SURGERY.items() if name != "not_pruned"}
    content[key] = SURGERY["not_pruned"]
    (layer,) = Surgery.model_validate(content).not_pruned
    assert (layer.name, layer.reason) == ("encoder.stem", "its input is the image")
