"""docs/how-to/search.md: its sbatch script as it stands there, run by a stub of SLURM; a lost node, and a time that is up."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.train import Run
from tests.support.stub_slurm import StubSlurm

pytest.importorskip("optuna", reason="Optuna is not installed")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "search.md"
SPACE = f"""
recipe: {ROOT / "tests" / "train" / "tiny.yaml"}
baseline: plain
seeds: [0]
overrides: [data.holdout=0.3, train.epochs=8]
entries:
  plain: {{}}
search:
  parameters:
    train.optimizer.lr: {{kind: float, low: 1e-3, high: 4e-3, log: true}}
  objectives: [{{name: delta_m}}]
"""


@pytest.fixture
def array(tmp_path: Path) -> Iterator[StubSlurm]:
    (block,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    script = tmp_path / "job.sh"
    script.write_text(block.replace("--array=0-3", "--array=0-2").replace("--trials 50", "--trials 4"))
    (tmp_path / "my-space.yaml").write_text(SPACE)
    found = StubSlurm(script, tmp_path / "slurm", tmp_path)
    yield found
    found.close()


def trial_of(array: StubSlurm, task: int) -> str | None:
    """The trial that a task is training now."""
    begun = re.findall(r"(trial-\d{4}).*?: train", array.output(task))
    return begun[-1] if begun else None


def in_a_trial(array: StubSlurm, tasks: set[int]) -> tuple[int, str]:
    """One of the tasks, and the trial that it is training: an epoch has ended while this looks, so it listens to signals."""
    seen: dict[tuple[int, str], int] = {}
    for _ in range(2400):
        for task in tasks & set(array.tasks):
            name = trial_of(array, task)
            run = array.cwd / "runs" / "my-space" / "trials" / (name or "none") / "seed0"
            if name is None or not (run / "checkpoints" / "last").exists() or Run.open(run).finished:
                continue
            epochs = [event["event"] for event in Run.open(run).log()].count("epoch")
            if epochs > seen.setdefault((task, name), epochs):
                return task, name
        time.sleep(0.05)
    raise AssertionError({task: array.output(task)[-500:] for task in array.tasks})


@pytest.mark.slow
def test_an_array_finishes_a_search_whatever_happens_to_its_tasks(array: StubSlurm) -> None:
    array.submit()
    lost, orphan = in_a_trial(array, {0, 1, 2})
    array.lose(lost)
    stopped, _ = in_a_trial(array, {0, 1, 2} - {lost})
    array.warn(stopped)
    array.wait(240)

    assert array.codes[lost] == [-signal.SIGKILL]
    assert array.codes[stopped] == [130, 0]  # requeued, and then to the end
    assert all(codes[-1] == 0 for task, codes in array.codes.items() if task != lost)
    out = array.cwd / "runs" / "my-space"
    trials = json.loads((out / "search.json").read_text())["trials"]
    assert [(one["number"], one["state"]) for one in trials] == [(number, "complete") for number in range(4)]
    events = [event["event"] for event in Run.open(out / "trials" / orphan / "seed0").log()]
    assert events.count("start") == 1 and events.count("resume") >= 1 and events.count("end") == 1
    others = "".join(array.output(task) for task in (0, 1, 2) if task != lost)
    assert f"{orphan}, taken over from a worker that ended" in others
