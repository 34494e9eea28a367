"""Two processes, and four, train what one trains at the same batch; they stop, fail and go on together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compactmtl.train import Run
from tests.support.same_runs import assert_same, weights
from tests.support.training_together import CASES, FOUR, INTERRUPTED, STEPS, float64, runs_of, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # two processes train all cases before the first test


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    return runs_of(2, tmp_path_factory.mktemp("together") / "two")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same runs by one process, each trained when it is first asked for."""
    return tmp_path_factory.mktemp("together")


def alone_of(case: str, folder: Path) -> Run:
    if (folder / case).exists():
        return Run.open(folder / case)
    with float64():
        return trained(case, folder / case)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(case: str, two: tuple[Path, list[Any]], alone: Path) -> None:
    expected = alone_of(case, alone)
    assert_same(two[0] / case, expected.path)


def test_what_shrank_shrank_alike(two: tuple[Path, list[Any]]) -> None:
    """The cases of sparsity do remove channels, so that their equality says something."""
    for case in ("lasso", "selective"):
        sparsity = [event["sparsity"] for event in Run.open(two[0] / case).log() if event["event"] == "epoch"]
        assert sparsity[-1]["macs_removable"] >= 0.25, case


def test_one_that_is_asked_stops_all_and_they_go_on_to_the_same_bits(two: tuple[Path, list[Any]]) -> None:
    folder, found = two
    for one in found:
        kind, code, message = one["interrupted"]
        assert (kind, code) == ("TrainingInterrupted", 130)
        assert f"after step {STEPS} of" in message
    for checkpoint in ("last", "best"):
        whole, resumed = (weights(folder / name, checkpoint) for name in ("whole", "interrupted"))
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_another_number_of_processes_goes_on(two: tuple[Path, list[Any]], alone: Path) -> None:
    expected = alone_of(INTERRUPTED, alone)
    with float64():
        resumed = trained(INTERRUPTED, two[0] / "left to one", resume=True)
    assert_same(resumed.path, expected.path)


def test_what_cannot_be_done_is_refused_by_name_on_all(two: tuple[Path, list[Any]]) -> None:
    folder, found = two
    for rank, one in enumerate(found):
        assert one["latency"][:2] == ["ConfigError", 2]
        assert "a latency budget of sparsity" in one["latency"][2]
        assert one["compiled"][:2] == ["ConfigError", 2]
        assert "train.compile: not supported by several processes" in one["compiled"][2]
        assert "holds a run already" in one["taken"][2]
        assert one["taken"][0] == ("TrainingError" if rank else "ConfigError")
        assert "after step 3 the weights differ between process 0 and process 1" in one["drifted"][2]
    assert not (folder / "refused").exists()


def test_four_processes_train_what_one_trains(tmp_path: Path, alone: Path) -> None:
    folder, found = runs_of(4, tmp_path / "four")
    for one in found:
        assert one["few"][:2] == ["ConfigError", 2]
        assert "a batch of 2 images, fewer than the 4 processes" in one["few"][2]
    assert not (folder / "refused").exists()
    for case in FOUR:
        assert_same(folder / case, alone_of(case, alone).path)
