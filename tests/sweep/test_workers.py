"""Three workers do every trial of a search once, one of them is killed, and the best trials are the right ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from compactmtl.config import resolve_sweep
from compactmtl.errors import ConfigError
from compactmtl.sweep.searching import open_search
from tests.support.made_up_search import values_of
from tests.support.postgres import postgres

pytest.importorskip("optuna", reason="Optuna is not installed")

ROOT = Path(__file__).parents[2]
TRIALS = 24
SPACE = f"""
recipe: {ROOT / "tests" / "train" / "tiny.yaml"}
seeds: [0]
search:
  parameters:
    train.optimizer.lr: {{kind: float, low: 1e-4, high: 1e-2, log: true}}
    train.clip: {{kind: int, low: 1, high: 5}}
  objectives: [{{name: macs}}, {{name: parameters}}]
  sampler: {{startup: 8}}
"""


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "journal":
            yield str(tmp_path / "search.journal")
        elif request.param == "sqlite":
            yield f"sqlite:///{tmp_path / 'search.db'}"
        else:
            yield stack.enter_context(postgres())


def worker(tmp_path: Path, storage: str, name: str, *slow: object) -> subprocess.Popen[str]:
    words = [tmp_path / "space.yaml", tmp_path / "out", storage, TRIALS, name, *slow]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.made_up_search", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def told(tmp_path: Path) -> list[list[str]]:
    path = tmp_path / "out" / "told.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(tmp_path: Path, words: list[str], *processes: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if any(line[: len(words)] == words for line in told(tmp_path)):
            return
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"nobody said {words}")


@pytest.mark.slow
def test_every_trial_is_done_once_whoever_dies(tmp_path: Path, storage: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE, "utf-8")
    doomed = worker(tmp_path, storage, "doomed", 2, 600)
    wait_until(tmp_path, ["begin", "2", "doomed"], doomed)
    others = [worker(tmp_path, storage, name) for name in ("one", "two")]
    wait_until(tmp_path, ["end", "9"], *others)
    assert ["begin", "2", "one"] not in told(tmp_path) and ["begin", "2", "two"] not in told(tmp_path)
    doomed.kill()
    doomed.communicate()
    for process in others:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said

    lines = told(tmp_path)
    ended = Counter(int(number) for word, number, _ in lines if word == "end")
    assert ended == Counter(range(TRIALS))
    begun = Counter(int(number) for word, number, _ in lines if word == "begin")
    assert begun == Counter(range(TRIALS)) + Counter([2])
    assert sum(line[:2] == ["begin", "2"] and line[2] != "doomed" for line in lines) == 1

    sweep = resolve_sweep(tmp_path / "space.yaml").sweep
    search = open_search(sweep, "space", tmp_path / "out", storage, [], smoke=False, must_exist=True)
    trials = search.study.trials()
    assert [one.number for one in trials] == list(range(TRIALS))
    assert all(one.state.name == "COMPLETE" for one in trials)
    values = {
        one.number: values_of(one.params["train.optimizer.lr"], one.params["train.clip"]) for one in trials
    }
    assert all(tuple(one.values or ()) == values[one.number] for one in trials)
    assert len({tuple(one.params.items()) for one in trials}) == TRIALS  # no worker drew another's values
    beaten = {
        one
        for one, other in itertools.permutations(values, 2)
        if values[other] != values[one]
        and all(b <= a for a, b in zip(values[one], values[other], strict=True))
    }
    front = sorted(set(values) - beaten)
    assert 1 < len(front) < TRIALS
    assert [one.number for one in search.study.front()] == front

    table = search.write("compactmtl sweep space.yaml")
    assert table is not None and len(table.rows) == len(front)
    results = json.loads((tmp_path / "out" / "search.json").read_text())
    assert sorted(one["number"] for one in results["trials"] if one["pareto"]) == front
    assert sorted(path.name for path in (tmp_path / "out" / "best").iterdir()) == [
        f"trial-{number:04d}.yaml" for number in front
    ]


@pytest.mark.slow
def test_a_study_of_another_space_or_another_folder_is_refused(tmp_path: Path, storage: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE, "utf-8")
    sweep = resolve_sweep(tmp_path / "space.yaml").sweep

    def open_it(out: str, *overrides: str) -> None:
        open_search(sweep, "space", tmp_path / out, storage, overrides, smoke=False, must_exist=False)

    open_it("out")
    open_it("out")
    with pytest.raises(ConfigError, match=r"another space \(recipe: train\.epochs: 3 and 5\)"):
        open_it("out", "train.epochs=5")
    with pytest.raises(ConfigError, match="has its runs in another folder than"):
        open_it("elsewhere")
