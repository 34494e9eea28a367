"""`compactmtl sweep SPACE --trials N`, whole: baseline, trials, pruning, a killed worker, tables and recipes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from compactmtl.cli.main import main
from compactmtl.config import resolve_recipe
from compactmtl.errors import MissingDependencyError, TrainingError
from compactmtl.sweep import search as search_module
from compactmtl.sweep.study import SEEDS, Claimed
from compactmtl.tasks import delta_m
from compactmtl.train import Run, train

pytest.importorskip("optuna", reason="Optuna is not installed")

ROOT = Path(__file__).parents[2]
SPACE = f"""
description: which widths
recipe: {ROOT / "tests" / "train" / "tiny.yaml"}
baseline: plain
seeds: [0]
overrides: [data.holdout=0.3, train.epochs=2]
entries:
  plain: {{}}
search:
  parameters:
    train.optimizer.lr: {{kind: float, low: 1e-3, high: 4e-3, log: true}}
    model.encoder.options.channels: {{kind: choice, values: [[8, 8, 12, 16], [16, 16, 24, 32]]}}
  objectives: [{{name: delta_m}}, {{name: macs}}]
  sampler: {{name: random}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "space.yaml"
    found.write_text(SPACE, "utf-8")
    return found


@pytest.mark.slow
def test_a_killed_workers_trial_goes_on_from_its_checkpoint(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    path.write_text(SPACE.replace("epochs=2", "epochs=12"), "utf-8")
    words = ["sweep", str(path), "--out", str(out), "--trials", "1"]
    words += ["--storage", f"sqlite:///{tmp_path / 'search.db'}"]
    run = out / "trials" / "trial-0000" / "seed0"
    killed = subprocess.Popen(
        [sys.executable, "-m", "compactmtl", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(2400):
        if (run / "checkpoints" / "last").exists():
            break
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not Run.open(run).finished
    assert main(words) == 0
    resumed = [event for event in Run.open(run).log() if event["event"] == "resume"]
    assert len(resumed) == 1 and resumed[0]["step"] > 0
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["number"], one["state"]) for one in trials] == [(0, "complete")]


@pytest.mark.slow
def test_a_search_from_the_baseline_to_the_recipes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    words = ["sweep", str(path), "--out", str(out)]
    assert main([*words, "--table"]) == 2  # nothing is there yet
    assert f"there is no search in {out}" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--trials", "1"]) == 0
    one = (out / "trials" / "trial-0000" / "seed0" / "log.jsonl").read_bytes()
    calls: list[Path] = []
    real = train
    monkeypatch.setattr(search_module, "train", lambda *a, **k: calls.append(a[1]) or real(*a, **k))  # type: ignore[func-returns-value]
    assert main([*words, "--trials", "3"]) == 0
    assert [call.parent.name for call in calls] == ["trial-0001", "trial-0002"]  # N is of all
    assert (out / "trials" / "trial-0000" / "seed0" / "log.jsonl").read_bytes() == one
    said = capsys.readouterr().out
    assert "no other trial is at least as good" in said

    results = json.loads((out / "search.json").read_text())
    assert results["objectives"] == ["delta_m", "macs"]
    trials = results["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    base = Run.open(out / "plain" / "seed0")
    for trial in trials:
        run = Run.open(out / "trials" / trial["name"] / "seed0")
        surgery = json.loads((run.path / "compact" / "surgery.json").read_text())
        assert trial["values"]["macs"] == surgery["macs"]["after"]
        assert trial["values"]["delta_m"] == pytest.approx(delta_m(run.best, base.best, run.measured))
        assert run.recipe.data.select_on == "holdout" and run.recipe.data.holdout == 0.3
        assert trial["seeds"]["macs"] == {"0": trial["values"]["macs"]}
    page = (out / "search.md").read_text()
    assert "## Best trials" in page and "pareto-delta-m-macs.svg" in page
    ElementTree.parse(out / "pareto-delta-m-macs.svg")
    best = sorted((out / "best").iterdir())
    assert best and all(file.stem in {one["name"] for one in trials if one["pareto"]} for file in best)
    recipe = resolve_recipe(best[0]).recipe
    assert recipe == Run.open(out / "trials" / best[0].stem / "seed0").recipe
    assert best[0].stem in (out / "sweep.md").read_text()  # beside the baseline, with metrics of val

    assert main([*words, "--table"]) == 0
    assert len(calls) == 2 and "trial-000" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_trial_is_told_and_leaves_the_others(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    real = train

    def spoiled(resolved: object, run: Path, **options: object) -> Run:
        if run.parent.name == "trial-0000":
            raise TrainingError("the loss is nan", "lower it")
        return real(resolved, run, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(search_module, "train", spoiled)
    assert main(["sweep", str(path), "--out", str(out), "--trials", "2"]) == 2
    assert "failed: " in capsys.readouterr().err
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["state"], one["reason"]) for one in trials] == [
        ("fail", "the loss is nan"),
        ("complete", None),
    ]
    assert "trial-0000: the loss is nan" in (out / "search.md").read_text()


@pytest.mark.slow
def test_a_full_disk_ends_the_worker_and_not_the_trial(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    words = ["sweep", str(path), "--out", str(out), "--trials", "1"]

    def full(*_: object, **__: object) -> Run:
        raise OSError(28, "No space left on device", "there")

    with monkeypatch.context() as patched:
        patched.setattr(search_module, "train", full)
        assert main(words) == 2
    assert main(words) == 0
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["number"], one["state"]) for one in trials] == [(0, "complete")]


@pytest.mark.slow
def test_sigterm_between_trainings_leaves_the_trial_and_exits_with_130(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    words = ["sweep", str(path), "--out", str(out), "--trials", "1"]

    def warned(*_: object, **__: object) -> Run:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal did nothing")

    with monkeypatch.context() as patched:
        patched.setattr(search_module, "train", warned)
        assert main(words) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n  give the same command again to go on\n")
    assert json.loads((out / "search.json").read_text())["trials"][0]["state"] == "running"
    assert main(words) == 0
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["number"], one["state"]) for one in trials] == [(0, "complete")]


@pytest.mark.slow
def test_a_storage_that_fails_ends_the_worker_and_not_the_trial(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    words = ["sweep", str(path), "--out", str(out), "--trials", "1"]
    words += ["--storage", f"sqlite:///{tmp_path / 'search.db'}"]
    database = sqlite3.connect(tmp_path / "search.db")
    note = Claimed.note

    def gone_for_a_while(self: Claimed, key: str, value: object) -> None:
        if key != SEEDS:
            note(self, key, value)
            return
        database.execute("ALTER TABLE trials RENAME TO elsewhere")
        try:
            note(self, key, value)
        finally:
            database.execute("ALTER TABLE elsewhere RENAME TO trials")

    with monkeypatch.context() as patched:
        patched.setattr(Claimed, "note", gone_for_a_while)
        assert main(words) == 2
    assert "failed: (sqlite3.OperationalError) no such table: trials" in capsys.readouterr().err
    assert main(words) == 0
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["number"], one["state"]) for one in trials] == [(0, "complete")]


@pytest.mark.slow
def test_hopeless_trials_are_given_up(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPACE.replace("{name: delta_m}, {name: macs}", "{name: delta_m}").replace("epochs=2", "epochs=3")
    path.write_text(text + "  pruning: {after_epochs: 1, after_trials: 1, quantile: 0.5}\n", "utf-8")
    out = tmp_path / "runs"
    real = search_module.scores_of

    def made_up(run: Path) -> list[float]:
        better = {"trial-0000": 0.9, "trial-0001": 0.5, "trial-0002": 0.95}[run.parent.name]
        return [better for _ in real(run)]

    monkeypatch.setattr(search_module, "scores_of", made_up)
    assert main(["sweep", str(path), "--out", str(out), "--trials", "3"]) == 0
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [one["state"] for one in trials] == ["complete", "pruned", "complete"]
    assert "given up after epoch 1" in trials[1]["reason"]
    assert len(real(out / "trials" / "trial-0001" / "seed0")) == 1
    assert len(real(out / "trials" / "trial-0002" / "seed0")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--trials"),
        (["--trials", "0"], "at least one trial"),
        (["--trials", "2", "--only", "plain"], "--only has no meaning for a search"),
        (["--trials", "2", "data.select_on=val"], "wear val out"),
        (["--trials", "2", "--storage", "sqlite:////no/such/folder/x.db"], "cannot be opened"),
    ],
)
def test_a_wrong_command_line(
    path: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(path), "--out", str(tmp_path / "runs"), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_table_of_a_search_that_never_was_makes_nothing(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert main(["sweep", str(path), "--out", str(out), "--table"]) == 2
    assert f"there is no search in {out}" in capsys.readouterr().err
    assert not out.exists()


def test_trials_belong_to_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: demo\nentries:\n  plain: {}\n", "utf-8")
    assert main(["sweep", str(path), "--trials", "2"]) == 2
    assert "has no section `search`" in capsys.readouterr().err


def test_what_would_be_done(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(path), "--out", str(tmp_path / "runs"), "--trials", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "trials/*" in said and "train.optimizer.lr  {kind: float, low: 0.001" in said
    assert not (tmp_path / "runs").exists()


def test_without_optuna_the_exit_code_is_3(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise MissingDependencyError("Optuna cannot be imported", "pip install 'compactmtl[search]'")

    monkeypatch.setattr("compactmtl.sweep.searching.require_optuna", missing)
    assert main(["sweep", str(path), "--out", str(tmp_path / "runs"), "--trials", "2"]) == 3
    assert "compactmtl[search]" in capsys.readouterr().err
