"""The bench of equal latency: what is there is read, and every row is held against the pruner of its own amount."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from compactmtl.graph import cost
from tests.support.real_runs import compact_half, write_run
from tools import bench_equal_latency as bench
from tools.bench_equal_latency import Row


def seed(step: float) -> dict[str, Row]:
    return {
        "dense": Row(0.0, 1.0, 1.0),
        "GroupNorm 0.7": Row(-0.08 - step, 0.3, 0.25),
        "latency 0.7": Row(-0.04 + step, 0.35, 0.24),
        "GroupNorm 0.9": Row(-0.2, 0.1, 0.1),
        "latency 0.9": Row(-0.1, 0.12, 0.11),
    }


def test_a_row_has_the_seeds_mean_and_spread_against_the_pruner_of_its_amount() -> None:
    seeds = [seed(-0.01), seed(0.0), seed(0.01)]
    assert bench.line("latency 0.7", seeds) == (
        "| latency 0.7 | 3 | -4.0 ± 1.0 | 0.35 ± 0.00 | 0.24 ± 0.00 | 0.96 ± 0.00 |"
    )
    assert bench.line("latency 0.9", seeds).endswith("| 1.10 ± 0.00 |")
    assert bench.line("dense", seeds).endswith("| 1.00 ± 0.00 |  |")


def test_finished_seeds_are_read_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_training(*given: object) -> None:
        raise AssertionError("a finished seed was trained again")

    monkeypatch.setattr(bench, "trained", no_training)
    for number in (0, 1):
        (tmp_path / f"seed{number}").mkdir()
        rows = {name: vars(row) for name, row in seed(0.0).items()}
        (tmp_path / f"seed{number}" / "rows.json").write_text(json.dumps(rows))
    words = ["bench", "--root", "faces", "--out", str(tmp_path), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(seed(0.0))
    monkeypatch.setattr(sys, "argv", [*words, "--epochs", "4"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert "was begun with epochs 16, now 4: give another --out" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="trained again"):
        bench.rows(argparse.Namespace(out=tmp_path, amounts=[0.7]), 2)


@pytest.mark.slow
def test_the_share_of_macs_is_that_of_the_run(tmp_path: Path) -> None:
    run = compact_half(write_run(tmp_path / "run"))
    before, after = (
        cost(model, run.example_inputs()).macs for model in (run.load_model(), run.load_compact())
    )
    assert 0 < after < before
    assert bench.macs(run) == pytest.approx(after / before)


def test_a_budget_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{"dense": 2.0, "GroupNorm": 0.5}])
    monkeypatch.setattr(bench, "milliseconds", lambda given, runs: next(times))
    given, run = argparse.Namespace(), object()
    for _ in range(2):
        assert bench.limit(given, tmp_path / "pruner-0.7.json", run, run) == 0.5  # type: ignore[arg-type]
