"""The bench of latency budgets says what is met, and continues where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from tools import bench_latency_budget as bench


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        (1.0, "met"),
        (0.93, "met"),
        (0.91, "met, **overshot**"),
        (1.01, "**over the budget**"),
        (float("nan"), "**over the budget**"),
    ],
)
def test_an_artifact_is_within_the_budget_and_not_far_below(measured: float, says: str) -> None:
    assert bench.verdict(measured, 1.0) == says


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def cell(given: Any, recipe: str, target: str, share: float, folder: Path) -> bench.Result:
        made.append(share)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"recipe": recipe, "target": target, "share": share, "failed": "no such data"}

    monkeypatch.setattr(bench, "cell", cell)
    given = argparse.Namespace(recipes=["a/b"], targets=["t"], shares=[0.5, 0.2], out=tmp_path, table=False)
    with pytest.raises(KeyboardInterrupt):
        list(bench.results(given))
    found = list(bench.results(given))
    assert made == [0.5, 0.2, 0.2]
    assert [one["share"] for one in found] == [0.5, 0.2]
    assert "no such data" in bench.row(found[0])
    assert list(bench.results(argparse.Namespace(**{**vars(given), "shares": [0.1], "table": True}))) == []
