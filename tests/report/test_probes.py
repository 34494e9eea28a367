"""Probes of several runs as tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.balancing.universality import LossGap
from compactmtl.report.probes import group_name, probe_tables
from compactmtl.runs.probe import Probe, TaskProbe


def probe(accuracy: float, mae: float, *, gap: bool = True) -> Probe:
    found = LossGap(0.5, 2.0, 0.1, 3.0, 4.0) if gap else None
    return Probe(
        {
            "gender": TaskProbe("accuracy", {"linear": accuracy}, found),
            "age": TaskProbe("mae", {"linear": mae}, None),
        },
        {},
        {"train": 10, "val": 5},
    )


def test_a_row_is_mean_and_deviation_of_a_group() -> None:
    gender, age = probe_tables({"plain": [probe(0.8, 6.0), probe(0.9, 8.0)], "dgr": [probe(0.95, 5.0)]})
    assert gender.columns == ("linear ↑", "own loss", "random loss", "gap ↓", "gradient norm ↓")
    assert [cell.text for cell in gender.rows[0].cells] == [
        "85.00% ± 7.07",
        "0.5 ± 0",
        "2 ± 0",
        "1.5 ± 0",
        "3 ± 0",
    ]
    assert [row.label for row in gender.rows] == ["plain", "dgr"]
    assert gender.rows[1].cells[0].text == "95.00%"
    assert "1 to 2 runs" in gender.caption
    assert age.columns[0] == "linear ↓"
    assert age.rows[0].cells[0].text == "7 ± 1.4"
    assert age.rows[0].cells[1].text == "—"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/sweep/plain/seed0", "plain"),
        ("runs/faces-seed12", "faces"),
        ("runs/faces", "faces"),
    ],
)
def test_runs_of_other_seeds_share_a_name(path: str, name: str) -> None:
    assert group_name(Path(path)) == name
