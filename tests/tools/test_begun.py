"""A folder of results goes on with the settings that it was begun with, and with no others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import bench_latency_budget
from tools.begun import differs


def test_a_folder_goes_on_with_its_own_settings_alone(tmp_path: Path) -> None:
    out = tmp_path / "new"
    assert differs(out, {"epochs": 2, "amounts": (0.5, 0.9)}) == ""
    assert differs(out, {"epochs": 2, "amounts": [0.5, 0.9]}) == ""
    assert differs(out, {"epochs": 3, "amounts": [0.5]}) == (
        f"{out} was begun with amounts [0.5, 0.9], now [0.5]; epochs 2, now 3: give another --out"
    )
    assert differs(out, {"epochs": 2, "amounts": [0.5, 0.9]}) == ""  # a refusal changes nothing


def test_a_table_is_printed_whatever_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert differs(tmp_path, {"epochs": 9, "repeats": 1, "overrides": []}) == ""
    words = ["bench", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--table"])
    bench_latency_budget.main()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        bench_latency_budget.main()
    assert ended.value.code == 2
    assert "was begun with epochs 9, now 1" in capsys.readouterr().err
