"""Runs on targets: every combination has its cell, and one that was not run says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

from compactmtl.artifacts.layout import CARD
from compactmtl.report.card import model_card, write_card
from compactmtl.report.collect import build_report
from compactmtl.report.delta_formats import grid
from compactmtl.report.deployment import Point, deployments, front, pareto, points, prepared_views
from compactmtl.report.html import render
from compactmtl.report.model import ExportView, Report
from compactmtl.report.table import Cell, comparison
from compactmtl.train import Run
from compactmtl.verify.result import SINGLE, Verification
from tests.support.synthetic_runs import SyntheticRun, add_export, make_recipe
from tests.support.synthetic_verification import SLOW_INT8, scaled, timed, verification
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]


def report_of(runs: list[SyntheticRun], baseline: SyntheticRun | None, splits: TinySplits) -> Report:
    return build_report(cast(list[Run], runs), cast(Run | None, baseline), splits)


def prepare(run: SyntheticRun, target: str, reason: str = "no NVIDIA driver") -> None:
    folder = Path(run.path) / "export" / target
    folder.mkdir(parents=True)
    (folder / "prepared.json").write_text(json.dumps({"reason": reason}))


def test_every_run_and_target_has_its_row(make_run: MakeRun, splits: TinySplits) -> None:
    one = make_run("one", compacted=True, exported=True)
    two = make_run("two", compacted=True)
    prepare(two, "tensorrt-fp16")
    report = report_of([one, two], None, splits)
    table = deployments(report)
    assert table is not None
    cells = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert set(cells) == {
        f"{run}, {target}" for run in ("one", "two") for target in ("onnxruntime-cpu", "tensorrt-fp16")
    }
    assert cells["one, onnxruntime-cpu"][0] == "held: parity, accuracy vs PyTorch, latency"
    assert cells["one, onnxruntime-cpu"][-1] == "accuracy vs baseline, not slower, size"
    assert cells["two, tensorrt-fp16"][0] == "not run: no NVIDIA driver"
    assert set(cells["one, tensorrt-fp16"]) == {"not run"}


def test_figures_at_the_top_are_of_float32_where_there_is_one(make_run: MakeRun, splits: TinySplits) -> None:
    (view,) = report_of([make_run("one", compacted=True, exported=True)], None, splits).subjects
    (single,) = view.exports
    assert view.shown_export is single
    stats = single.verification.latency.stats
    latency = single.verification.latency.model_copy(
        update={"stats": {**stats, "compact" + SINGLE: stats["compact"]}}
    )
    lowered = ExportView(
        target="openvino-int8", verification=single.verification.model_copy(update={"latency": latency})
    )
    stage = view.final.model_copy(update={"target": "openvino-int8"})
    both = view.model_copy(update={"exports": (single, lowered), "stages": (*view.stages, stage)})
    assert both.shown_export is single
    assert both.final == view.final
    alone = both.model_copy(update={"exports": (lowered,), "stages": (*view.stages[:-1], stage)})
    assert alone.shown_export is lowered
    assert alone.final is stage


def exported(run: SyntheticRun, *found: Verification) -> SyntheticRun:
    for one in found:
        add_export(run, one)
    return run


def test_only_a_target_whose_gates_held_stands_for_a_run(make_run: MakeRun, splits: TinySplits) -> None:
    """By name the first is one that failed; by precision the second is not float32."""
    run = exported(
        make_run("one", compacted=True),
        verification(passed=False, target="a-failed"),
        verification(latency=timed(SLOW_INT8, "int8"), target="b-int8"),
        verification(target="c-float"),
    )
    report = report_of([run], None, splits)
    (view,) = report.subjects
    assert view.shown_export is not None and view.shown_export.target == "c-float"
    assert report.delta_table is not None and report.delta_table.rows[0].form == "exported, c-float"


def test_among_targets_in_float32_the_recipe_s_order_decides(make_run: MakeRun, splits: TinySplits) -> None:
    recipe = make_recipe(targets=["z-first", "a-second"])
    run = exported(
        make_run("one", recipe, compacted=True),
        verification(target="a-second"),
        verification(target="b-other"),
        verification(target="z-first"),
    )
    (view,) = report_of([run], None, splits).subjects
    assert view.shown_export is not None and view.shown_export.target == "z-first"


def test_where_every_export_failed_none_stands_for_the_run(
    make_run: MakeRun, splits: TinySplits, tmp_path: Path
) -> None:
    run = exported(
        make_run("one", compacted=True),
        verification(passed=False, target="a"),
        verification(passed=False, target="b"),
    )
    report = report_of([run], None, splits)
    (view,) = report.subjects
    assert view.shown_export is None and view.final.form == "compact"
    assert report.delta_table is not None and report.delta_table.rows[0].form == "compact"
    assert any("no export held all of its gates" in note for note in report.notes)
    page = render(report, [])
    assert "every export failed its gates" in page.split('<dl class="facts">')[0]
    assert "No target is the headline. Passed over: a failed 1 gate; b failed 1 gate." in page
    latency = next(row for row in comparison(report).rows if row.label.startswith("latency"))
    assert Cell("gates failed", "bad") in latency.cells
    assert not points(report)
    shown = deployments(report)
    assert shown is not None and not any(cell.tone == "good" for row in shown.rows for cell in row.cells)


def test_int8_that_lost_time_is_red_against_itself_and_said_in_a_note(
    pair: tuple[SyntheticRun, SyntheticRun], make_run: MakeRun, splits: TinySplits
) -> None:
    run = exported(
        make_run("int8", compacted=True),
        verification(latency=timed(SLOW_INT8, "int8"), target="int8", baseline=scaled(1.0)),
    )
    report = report_of([run], pair[0], splits)
    table = deployments(report)
    assert table is not None
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert cells["against itself in fp32"].tone == "bad"
    assert cells["against itself in fp32"].text.endswith("slower")
    assert cells["against dense fp32"].text.endswith("faster")
    assert cells["against dense in this precision"].tone == cells["against dense fp32"].tone == ""
    (note,) = report.notes
    assert "slower than compact fp32" in note
    assert "slower than compact fp32" in model_card(report.subjects[0], report)
    page = render(report, [])
    assert 'class="good">1.8' not in page and 'good">1.1' not in page
    speed = grid(report).columns[-1].cells[-1]
    assert (speed.text.endswith("faster"), speed.tone) == (True, "")
    dense = [point for point in points(report) if point.gain == 0]
    assert [round(point.milliseconds, 1) for point in dense] == [8.7]  # the float32 one, whose Δm is 0


def test_no_target_no_table(make_run: MakeRun, splits: TinySplits) -> None:
    assert deployments(report_of([make_run("one")], None, splits)) is None


def test_a_prepared_target_that_was_verified_since_is_no_longer_not_run(make_run: MakeRun) -> None:
    run = make_run("one", compacted=True, exported=True)
    (Path(run.path) / "export" / "onnxruntime-cpu" / "prepared.json").write_text('{"reason": "x"}')
    prepare(run, "other")
    (Path(run.path) / "export" / "other" / "prepared.json").write_text("{")
    (found,) = prepared_views(Path(run.path))
    assert found.target == "other"
    assert "is damaged" in found.reason


def test_front_holds_what_nothing_beats() -> None:
    """Faster and worse stays, slower and worse goes, the better of two equally fast stays."""
    made = [(1, 0.0), (2, -0.1), (2, 0.1), (3, 0.1), (4, 0.3)]
    found = front([Point(str(index), "t", ms, gain) for index, (ms, gain) in enumerate(made)])
    assert [(point.milliseconds, point.gain) for point in found] == [(1, 0.0), (2, 0.1), (4, 0.3)]


def test_pareto_shows_the_run_and_the_baseline_that_it_was_timed_against(
    pair: tuple[SyntheticRun, SyntheticRun], splits: TinySplits
) -> None:
    dense, compact = pair
    report = report_of([compact], dense, splits)
    found = points(report)
    assert [(point.label, point.gain == 0) for point in found] == [
        (report.subjects[0].name, False),
        (report.baseline, True),
    ]
    chart = pareto(found)
    assert chart is not None and report.subjects[0].name in chart
    assert pareto(found[:1]) is None


def test_page_and_card_show_what_was_not_run(
    pair: tuple[SyntheticRun, SyntheticRun], splits: TinySplits
) -> None:
    dense, compact = pair
    prepare(compact, "tensorrt-int8", "no NVIDIA driver: none")
    report = report_of([compact], dense, splits)
    page = render(report, [])
    assert 'id="deployments"' in page
    assert "Prepared, and not run: no NVIDIA driver: none" in page
    card = model_card(report.subjects[0], report)
    for word in (
        f"# {report.subjects[0].name}",
        "| onnxruntime-cpu (headline) | held: parity, accuracy vs PyTorch, latency |",
        "- tensorrt-int8: not run (no NVIDIA driver: none).",
        "segmentation, mIoU ↑",
        "compactmtl train",
        "parameters and",
        "- **Is the artifact equal to the model?** yes;",
        "Headline: onnxruntime-cpu, the only target exported.",
        "| depth, output | 1×1×48×64 | float32 | depth at each pixel | m |",
    ):
        assert word in card


def test_card_of_a_run_that_was_only_trained(make_run: MakeRun, splits: TinySplits) -> None:
    report = report_of([make_run("one")], None, splits)
    card = model_card(report.subjects[0], report)
    assert "Latency: not run." in card


def test_a_readme_of_the_users_own_is_kept(make_run: MakeRun, splits: TinySplits) -> None:
    run = make_run("one")
    report = report_of([run], None, splits)
    path = write_card(report.runs[0], report)
    assert path == write_card(report.runs[0], report) == Path(run.path) / CARD
    path.write_text("# mine")
    assert write_card(report.runs[0], report) is None
    assert path.read_text() == "# mine"
