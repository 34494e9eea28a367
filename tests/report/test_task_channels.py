"""Channels and tasks in a report: columns by what they serve, what removal cost each task, whether bounds held."""

from __future__ import annotations

import pytest

from compactmtl.report.read import BoundCheck, Importance, TaskBounds, TaskLayer, TaskLoss
from compactmtl.report.task_channels import ALL, _bounds, _columns, paid, serving

LAYERS = (
    TaskLayer(name="stem", channels=3, removed=(1,), shares={"a": (0.3, 0.05, 0.1), "b": (0.1, 0.2, 0.3)}),
    TaskLayer(name="deep", channels=2, removed=(), shares={"a": (0.5, 0.0), "b": (0.4, 0.0)}),
)


def known(bounds: TaskBounds | None = None, layers: tuple[TaskLayer, ...] = LAYERS) -> Importance:
    return Importance(
        version=1, importance="taylor", tasks=("a", "b"), looks=4, seconds=2.0, layers=layers, bounds=bounds
    )


def test_columns_are_ordered_by_the_task_that_needs_them_and_removed_ones_are_empty() -> None:
    assert _columns(LAYERS[0], ("a", "b")) == [
        pytest.approx([0.75, 0.25]),
        pytest.approx([0.25, 0.75]),
        [0.0, 0.0],
    ]
    assert _columns(LAYERS[1], ("a", "b"))[1] == [0.0, 0.0]  # a channel that no task was seen to need


def test_a_row_is_a_layer_with_an_area_a_task() -> None:
    chart = serving(known())
    assert [row.name for row in chart.rows] == ["stem", "deep"] and chart.series == ("a", "b")
    assert [row.text for row in chart.rows] == ["2 of 3", "2 of 2"]
    (last, color), (first, _) = chart.rows[0].areas
    assert color == 1 and last != first  # the last task lies under the others
    assert "4 of 5 channels stay" in chart.caption


def test_a_branch_is_no_channel() -> None:
    branch = TaskLayer(
        name="deep (branch)", branch=True, channels=1, removed=(0,), shares={"a": (0.1,), "b": (0.0,)}
    )
    chart = serving(known(layers=(*LAYERS, branch)))
    assert [row.text for row in chart.rows] == ["2 of 3", "2 of 2", "removed"]
    assert "of 2 layers" in chart.caption
    assert chart.caption.endswith(
        "4 of 5 channels stay; 0 of 1 residual branches stay, and the others took their layers with them"
    )


def test_what_went_is_counted_for_each_task_and_layer() -> None:
    chart = paid(known())
    assert chart is not None
    assert [row.name for row in chart.rows] == [ALL, "stem"]
    assert [bar.text for bar in chart.rows[0].bars] == ["5 %", "20 %"]
    assert [bar.share for bar in chart.rows[0].bars] == pytest.approx([0.25, 1.0])
    assert paid(known(layers=LAYERS[1:])) is None


def test_bounds_are_held_against_the_last_check() -> None:
    checks = (
        BoundCheck(step=1, share=0.0, losses={"a": TaskLoss(share=0.0), "b": TaskLoss(share=0.0)}, held=True),
        BoundCheck(
            step=9,
            share=0.5,
            losses={"a": TaskLoss(share=0.012, error=0.003), "b": TaskLoss(share=None)},
            held=False,
        ),
    )
    bounds = TaskBounds(
        most={"a": 0.01, "b": 0.0},
        reference={"a": 0.5, "b": 2.0},
        checks=checks,
        gone=0.5,
        steps_back=1,
        stopped=9,
        final={"a": TaskLoss(share=-0.001, error=0.002), "b": TaskLoss(share=0.004)},
        seconds=1.0,
    )
    table = _bounds(known(bounds))
    assert table is not None
    assert [[cell.full for cell in row.cells] for row in table.rows] == [
        ["1 %", "0.5", "1.20 % (± 0.30 %)", "-0.10 % (± 0.20 %)"],
        ["0 %", "2", "no number", "0.40 %"],
    ]
    assert [[cell.tone for cell in row.cells[2:]] for row in table.rows] == [
        ["good", "good"],
        ["bad", "bad"],
    ]
