"""Runs on targets: every combination has its cell, and one that was not run says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

from compactmtl.report.card import CARD, model_card, write_card
from compactmtl.report.collect import build_report
from compactmtl.report.deployment import Point, deployments, front, pareto, points, prepared_views
from compactmtl.report.html import render
from compactmtl.report.model import ExportView, Report
from compactmtl.train import Run
from compactmtl.verify.result import SINGLE
from tests.support.synthetic_runs import SyntheticRun, TinySplits

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
    assert cells["one, onnxruntime-cpu"][0] == "verified"
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
    stage = view.final.model_copy(update={"label": "exported, openvino-int8"})
    both = view.model_copy(update={"exports": (single, lowered), "stages": (*view.stages, stage)})
    assert both.shown_export is single
    assert both.final == view.final
    alone = both.model_copy(update={"exports": (lowered,), "stages": (*view.stages[:-1], stage)})
    assert alone.shown_export is lowered
    assert alone.final is stage


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
    svg = pareto(found, "k")
    assert svg is not None and report.subjects[0].name in svg
    assert pareto(found[:1], "k") is None


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
        "| onnxruntime-cpu | verified |",
        "- tensorrt-int8: not run (no NVIDIA driver: none).",
        "segmentation, mIoU ↑",
        "compactmtl train",
        "parameters and",
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
