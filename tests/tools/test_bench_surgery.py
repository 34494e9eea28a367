"""The bench of surgery tells exact, wrong and crashed results apart, whatever a broken network gives."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from tools.bench_surgery import error, errors, run
from tools.surgery_table import is_exact, read, table

IMAGE = (torch.zeros(1, 3, 8, 8),)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def one_nan(x: Tensor) -> Tensor:
    y = x.clone()
    y[0, 0, 0, 0] = math.nan
    return y


def raising(_x: Tensor) -> Tensor:
    raise RuntimeError("a broken cut")


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x * math.nan,
        one_nan,
        lambda x: x / 0,
        lambda x: x[:, :2],
        lambda x: (x, x),
        lambda x: x[..., :1],
    ],
)
def test_what_is_no_number_or_of_another_shape_is_no_small_error(other: Callable[[Tensor], Any]) -> None:
    found = errors(Function(lambda x: x), Function(other), IMAGE)
    assert found["error"] == math.inf and not is_exact(found)


def test_the_largest_difference_counts_in_shares_of_the_largest_value() -> None:
    x = torch.tensor([[[[4.0, 1.0]]]])
    assert error(Function(lambda x: x), Function(lambda x: x + 1), x) == 0.25


def test_not_a_number_in_both_is_the_same() -> None:
    assert error(Function(one_nan), Function(one_nan), torch.ones(1, 3, 8, 8)) == 0


def test_a_network_that_raises_is_no_exact_one() -> None:
    with pytest.raises(RuntimeError, match="a broken cut"):
        errors(Function(lambda x: x), Function(raising), IMAGE)
    with pytest.raises(ValueError, match="takes none"):
        errors(Function(raising), Function(lambda x: x), IMAGE)


def test_a_size_that_the_network_is_not_built_for_is_left_out() -> None:
    def fixed(x: Tensor) -> Tensor:
        if x.shape[-1] != 8:
            raise RuntimeError("another size")
        return x

    assert errors(Function(fixed), Function(fixed), IMAGE) == {"float32": 0.0, "error": 0.0}


def row(**values: Any) -> dict[str, Any]:
    mine = {
        "network": "net",
        "pattern": "C",
        "varies": 1.0,
        "bound": 0.5,
        "macs": 0.5,
        "error": 0.0,
        "date": "2026-01-02",
    }
    return mine | {"latency": 1.0, "tp": {"error": 0.0, "macs": 0.75}} | values


def written(path: Path, rows: list[dict[str, Any]], commit: str = "abc") -> Path:
    version = {
        "commit": commit,
        "changed": False,
        "packages": {"torch": "2"},
        "processor": "one",
        "threads": 1,
    }
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"version": version}, *rows]))
    return path


def test_the_table_counts_each_kind_of_result_in_its_own_column(tmp_path: Path) -> None:
    rows = [
        row(),
        row(error=math.nan),
        row(error=math.inf),
        row(tp={"error": math.nan, "macs": 0.1}),
        row(tp={"failure": "RuntimeError"}),
        {"network": "net", "pattern": "C", "failure": "RuntimeError", "date": "2026-01-03"},
    ]
    text = table([written(tmp_path / "rows.jsonl", rows)])
    line = next(line for line in text.splitlines() if line.startswith("| C |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["C", "5", "3", "2", "1"]
    assert cells[8:11] == ["3", "1", "1"]
    assert "commit abc, 2026-01-02 to 2026-01-03, torch 2" in text


def test_files_of_two_versions_make_no_table(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{commit}.jsonl", [row()], commit) for commit in ("abc", "def")]
    with pytest.raises(SystemExit, match="different versions"):
        table(files)
    with pytest.raises(SystemExit, match="was begun with"):
        run(files[0], [], [], 1)


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row()])
    with path.open("a") as file:
        file.write('{"network": "ne')
    assert [found["network"] for found in read(path)[1]] == ["net"]
