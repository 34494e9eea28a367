"""Settings are compared on the split that chose their epochs, paired by seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from compactmtl.report.paired import sweep_report
from compactmtl.report.selection import selection_cells
from compactmtl.train import Run
from tests.support.synthetic_runs import SyntheticRun, make_recipe
from tests.support.tiny_val import TinySplits

MakeRun = Callable[..., SyntheticRun]


def runs_of(make_run: MakeRun, data: dict[str, Any]) -> dict[str, list[Run]]:
    factors = {"plain": {0: 1.0, 1: 2.0}, "ours": {0: 0.9, 1: 2.2}}
    return {
        entry: [
            cast(
                Run,
                make_run(f"{entry}/seed{seed}", make_recipe(("age",), seed=seed, data=data), factor=factor),
            )
            for seed, factor in seeds.items()
        ]
        for entry, seeds in factors.items()
    }


def test_differences_are_those_of_the_same_seed(make_run: MakeRun) -> None:
    data = {"name": "scenes", "size": (48, 64), "holdout": 0.1, "select_on": "holdout"}
    runs = runs_of(make_run, data)
    found = sweep_report("faces", runs, "plain", {}, TinySplits())
    table = selection_cells(found, runs)
    assert table is not None and "holdout" in table.caption
    plain, ours = table.rows
    assert plain.cells[0].text == "baseline"
    assert ours.cells[0].text.startswith("0.00 ± 14.14") and ours.cells[0].text.endswith("(1/2)")
    assert ours.cells[1].text.startswith("10.4")  # 6.71 years, times 0.9 and 2.2


def test_where_val_chose_the_epochs_there_is_none(make_run: MakeRun) -> None:
    runs = runs_of(make_run, {"name": "scenes", "size": (48, 64)})
    found = sweep_report("faces", runs, "plain", {}, TinySplits())
    assert selection_cells(found, runs) is None
