"""The table of the bench of TensorRT for RTX says what was built, what was not and why, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.bench_tensorrt_rtx import main, networks
from tools.rtx_table import read, table


def row(capability: float, outcome: str, **more: Any) -> dict[str, Any]:
    known = {"network": "demo", "recipes": ["demo"], "form": "dense", "precision": "fp32"}
    return known | {"capability": capability, "outcome": outcome} | more


def write(path: Path, *rows: dict[str, Any]) -> Path:
    first = {"version": {"tensorrt_rtx": "1.7", "torch": "2.9", "processor": "a CPU"}, "networks": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *rows)))
    return path


def test_counts_reasons_and_figures(tmp_path: Path) -> None:
    built = {"build_seconds": 1.25, "megabytes": 3.0, "peak_mib": None}
    why = "compute capability 7.5 has no float32 matrix products: the model has them at fc"
    rows = (row(7.5, "refused", why=why), row(8.9, "accepted", **built))
    shown = table(write(tmp_path / "rows.jsonl", *rows))
    assert "**Partial**: 2 of 40 builds" in shown
    assert "| fp32 | 0 / 1 / 0 | 1 / 0 / 0 |" in shown
    assert "| demo | 1 | dense | 1.2 s, 3.0 MB, not 7.5 |" in shown
    assert "| refused | compute capability 7.5 has no float32 matrix products | 1 |" in shown


def test_a_whole_table_does_not_say_partial(tmp_path: Path) -> None:
    built = {"build_seconds": 1.0, "megabytes": 3.0, "peak_mib": 64.0}
    assert "Partial" not in table(write(tmp_path / "rows.jsonl", *[row(8.9, "accepted", **built)] * 40))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(8.9, "refused", why="no"))
    with path.open("a") as file:
        file.write('{"network": "dem')
    assert len(read(path)[2]) == 1


def test_a_file_of_another_version_is_not_continued(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    with pytest.raises(SystemExit, match="was begun with"):
        main(["run", "--out", str(path), "--networks", networks()[0].name])


def test_an_unknown_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--networks", "no/such"])
    assert "no recipe is called no/such" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_has_every_recipes_network() -> None:
    """A recipe that came since the bench ran has to be built too: the page says that all are in it."""
    page = (Path(__file__).parents[2] / "docs" / "results" / "tensorrt-rtx.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.count("|") == 8}
    known = [{one.name, *one.recipes} for one in networks()]
    assert [sorted(names) for names in known if not names & rows] == []
