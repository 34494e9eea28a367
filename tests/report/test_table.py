"""The comparison table."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import cast

import pytest
from rich.console import Console

from compactmtl.report import build_report
from compactmtl.report.table import (
    Table,
    comparison,
    markdown,
    metric_change,
    plain,
    rich_table,
    speed_cell,
)
from compactmtl.train import Run
from tests.support.synthetic_runs import FACE_TASKS, SyntheticRun, make_recipe
from tests.support.synthetic_verification import SLOW_INT8, scaled, timed
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]


def table_of(runs: list[SyntheticRun], baseline: SyntheticRun | None) -> Table:
    return comparison(build_report(cast(list[Run], runs), cast(Run | None, baseline), TinySplits()))


def row(table: Table, label: str) -> list[str]:
    return next([cell.text for cell in row.cells] for row in table.rows if row.label.startswith(label))


def test_against_a_baseline(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    dense, compact = pair
    table = table_of([compact], dense)
    assert table.columns == ("dense", "compact", "change")
    assert row(table, "segmentation, mIoU ↑") == ["71.2 %", "69.8 %", "−2.0 %"]
    assert row(table, "Δm")[0] == "baseline"
    assert row(table, "MACs")[1:] == ["29.5 k", "−60.0 % (2.50× fewer)"]
    assert row(table, "latency")[2].endswith("× faster")
    assert "Δm against dense" in table.caption


def test_without_a_baseline_the_forms_of_the_run_are_compared(make_run: MakeRun) -> None:
    table = table_of([make_run("one", compacted=True, exported=True)], None)
    assert table.columns == ("trained", "exported", "change")
    assert "not run" not in row(table, "latency")
    assert not any(one.label.startswith("Δm") for one in table.rows)


def test_tone_follows_which_way_is_better(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    dense, compact = pair
    tones = {one.label: one.cells[-1].tone for one in table_of([compact], dense).rows}
    assert tones["segmentation, mIoU ↑"] == "bad"  # 2 % lower
    assert tones["depth, abs err ↓"] == "good"  # 2 % lower
    assert metric_change(1.0, 1.0, higher_is_better=True).tone == ""
    assert metric_change(math.nan, 1.0, higher_is_better=True) == metric_change(
        1.0, 0.0, higher_is_better=True
    )


def test_what_was_not_measured_says_so(make_run: MakeRun) -> None:
    table = table_of([make_run("one")], make_run("dense"))
    assert row(table, "latency") == ["not run", "not run", "—"]


def test_latency_against_another_model_is_not_shown_as_the_baseline_s(make_run: MakeRun) -> None:
    other = make_run("other", factor=0.5)
    run = make_run("one", compacted=True, exported=True, baseline=scaled(1.0))
    latency = row(table_of([run], other), "latency")
    assert latency[0] == "not run"
    assert latency[2] == "—"


def test_a_task_that_a_run_lacks_is_a_dash(make_run: MakeRun) -> None:
    both = make_run("both", make_recipe(FACE_TASKS))
    one = make_run("one", make_recipe(("age",)))
    table = table_of([one], both)
    assert row(table, "gender") == ["89.1 %", "—", "—"]
    assert row(table, "Δm")[1] != "not run"


@pytest.mark.parametrize(
    ("compact", "text", "tone"),
    [(4.0, "× faster", "good"), (16.0, "× slower", "bad"), (8.0, "no difference beyond noise", "")],
)
def test_speed_in_words(compact: float, text: str, tone: str) -> None:
    cell = speed_cell(timed({"dense": 8.0, "compact": compact}), "dense")
    assert cell.text.endswith(text) and cell.tone == tone


def test_what_its_precision_made_slower_is_never_green() -> None:
    """An int8 that beats the dense int8 and not its own float32 form: true, and no good news."""
    latency = timed(SLOW_INT8, "int8")
    assert speed_cell(latency, "dense").tone == ""
    assert speed_cell(latency, "dense").text.endswith("faster")
    assert speed_cell(latency, "compact fp32").text.endswith("slower")
    assert speed_cell(latency, "compact fp32").tone == "bad"
    assert speed_cell(latency, "dense fp32").tone == ""


def test_every_rendering_holds_every_cell(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    table = table_of([pair[1]], pair[0])
    drawn = io.StringIO()
    Console(file=drawn, width=200).print(rich_table(table))
    for text in (plain(table), markdown(table), drawn.getvalue()):
        for one in table.rows:
            assert one.label in text
            assert all(cell.text in text for cell in one.cells)


def test_plain_text_is_aligned(pair: tuple[SyntheticRun, SyntheticRun]) -> None:
    lines = plain(table_of([pair[1]], pair[0])).split("\n\n")[0].splitlines()
    body = [line for line in lines if not line.startswith("Δm")]  # its last cell is empty
    assert len({len(line) for line in body}) == 1
