"""A sweep's entries as deployed: paired by seed and round, drawn true to their numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest

from compactmtl.report import Report, markdown, write_collected
from compactmtl.report.charts import ratio_axis
from compactmtl.report.deployed import deployed_cells, deployed_name, planes, with_deployed
from compactmtl.report.paired import sweep_report
from compactmtl.report.svg import drawn
from compactmtl.train import Run
from compactmtl.verify.result import AccuracyResult, LatencyResult
from tests.support.synthetic_runs import SyntheticRun, add_export, make_recipe
from tests.support.synthetic_verification import scaled, timed, verification
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]
TARGET = "onnxruntime-cpu"
AGE = ("age",)
# by entry and seed: age's error of the file over that of a perfect baseline, and milliseconds
FILES = {
    "plain": {0: (1.0, 4.0), 1: (1.1, 4.0)},
    "half": {0: (0.9, 2.0), 1: (1.21, 2.0)},
    "quarter": {0: (1.2, 1.0)},
}


def entry_runs(make_run: MakeRun) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    for entry, seeds in FILES.items():
        for seed, (factor, _) in seeds.items():
            run = make_run(f"{entry}/seed{seed}", make_recipe(AGE, seed=seed), factor=factor)
            found = verification(AGE, passed=entry != "quarter")
            accuracy = AccuracyResult(samples=8, torch=scaled(factor, AGE), artifact=scaled(factor, AGE))
            add_export(run, found.model_copy(update={"accuracy": accuracy}))
            runs.setdefault(entry, []).append(cast(Run, run))
    return runs


def latencies() -> dict[int, tuple[LatencyResult, str]]:
    return {
        seed: (
            timed({deployed_name(entry, TARGET): seeds[seed][1] for entry, seeds in FILES.items() if seed in seeds}),
            "2026-01-02T03:04:05+00:00",
        )
        for seed in (0, 1)
    }  # fmt: skip


@pytest.fixture
def report(make_run: MakeRun) -> Report:
    runs = entry_runs(make_run)
    found = sweep_report("faces", runs, "plain", {"quarter": [1]}, TinySplits())
    return with_deployed(found, runs, latencies(), [TARGET], {"half": "ours", "quarter": "ours"})


def test_speed_is_against_the_baseline_of_the_same_seed_and_round(report: Report) -> None:
    assert report.sweep is not None
    plain, half, quarter = report.sweep.deployed
    assert plain.is_baseline and plain.speedup is None
    assert half.speedup is not None and quarter.speedup is not None
    assert half.speedup.values == pytest.approx((2, 2), rel=0.1)  # the synthetic rounds vary by that much
    assert quarter.speedup.values == pytest.approx([4], rel=0.1)
    assert half.milliseconds.mean == pytest.approx(2, rel=0.1)


def test_delta_m_is_that_of_the_file_against_the_baseline_as_trained(report: Report) -> None:
    assert report.sweep is not None
    plain, half, quarter = report.sweep.deployed
    assert plain.delta_m is not None and plain.delta_m.values == pytest.approx((0, 0))
    assert half.delta_m is not None and half.delta_m.values == pytest.approx((0.1, -0.1))
    assert half.better == 1
    assert quarter.delta_m is not None and quarter.delta_m.values == pytest.approx([-0.2])
    assert quarter.seeds == (0,) and quarter.failed_gates == (0,)


def test_the_table_tells_failed_gates_and_the_machine(report: Report) -> None:
    table = deployed_cells(report)
    assert table is not None
    assert [row.label for row in table.rows] == [f"{entry}, {TARGET}" for entry in FILES]
    assert [row.cells[-1].text for row in table.rows] == ["2/2", "2/2", "0/1"]
    assert "Some CPU @ 2 GHz, 1 thread; 2026-01-02" in markdown(table)


def test_without_a_latency_there_is_no_table(make_run: MakeRun) -> None:
    runs = entry_runs(make_run)
    found = sweep_report("faces", runs, "plain", {}, TinySplits())
    assert deployed_cells(found) is None and planes(found) == []
    only = with_deployed(found, runs, {1: latencies()[1]}, [TARGET], {})
    assert only.sweep is not None
    assert [row.label for row in only.sweep.deployed] == ["plain", "half"]


def test_a_baseline_that_was_not_timed_gives_no_speedup(make_run: MakeRun) -> None:
    runs = entry_runs(make_run)
    found = sweep_report("faces", runs, "plain", {}, TinySplits())
    alone = timed({deployed_name("half", TARGET): 2.0})
    only = with_deployed(found, runs, {0: (alone, "")}, [TARGET], {})
    assert only.sweep is not None
    assert [row.speedup for row in only.sweep.deployed] == [None]


def test_the_figure_has_every_entry_where_it_belongs(report: Report) -> None:
    (plane,) = planes(report)
    assert list(plane.curves) == ["plain", "ours"]
    assert [one.label for one in plane.curves["ours"]] == ["quarter", "half"]  # from the fastest on
    root = ElementTree.fromstring(drawn(plane))
    dots = {
        dot[0].text.split(":")[0]: (float(dot.get("cx", "")), float(dot.get("cy", "")))  # type: ignore[union-attr]
        for dot in root.iter("{http://www.w3.org/2000/svg}circle")
        if len(dot)
    }
    assert set(dots) == set(FILES)
    assert dots["quarter"][0] < dots["half"][0] < dots["plain"][0]
    assert dots["quarter"][1] > dots["half"][1]  # y grows downwards: the quarter is worse
    # halving the latency is the same step wherever it is taken
    steps = dots["half"][0] - dots["quarter"][0], dots["plain"][0] - dots["half"][0]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)


def test_names_are_escaped(report: Report) -> None:
    (plane,) = planes(report)
    curve = [dataclasses.replace(one, label="<b>", words="<&>") for one in plane.curves["ours"]]
    ElementTree.fromstring(drawn(dataclasses.replace(plane, title="<i>", curves={"<u>": curve})))


def test_the_page_and_the_json_have_it(report: Report, tmp_path: Path) -> None:
    page = write_collected(report, [], tmp_path / "out").read_text()
    assert "Exported files, timed side by side" in page
    assert len(re.findall(r'class="mark dot', page)) >= 3
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report


@pytest.mark.parametrize("values", [[0.3, 4.0], [1.0], [0.021, 0.022], [3.1, 3.2], [800.0, 12000.0]])
def test_an_axis_of_ratios_holds_its_values_and_has_a_tick(values: list[float]) -> None:
    axis = ratio_axis(values, "ms")
    assert axis.low < min(values) and max(values) < axis.high
    assert axis.ticks and all(axis.low <= tick <= axis.high * 1.001 for tick in axis.ticks)
    assert axis.at(min(values)) < axis.at(max(values)) or len(values) == 1
