"""A disk that is full or read-only in training: an error that names it, nothing half-written, and the run goes on bit-equal."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.artifacts.versions import resolve
from compactmtl.cli.main import main
from compactmtl.config import resolve_recipe
from compactmtl.train import Run, loop, train
from compactmtl.train.session import Session
from compactmtl.train.tracking import Tracker
from tests.support.small_disk import SmallDisk, small_disk

EVERYTHING = Path(__file__).with_name("everything.yaml")
WORDS = ["train", str(EVERYTHING), "--name", "run", "--out"]
# What writes when the disk is full, and its how-manieth call that is: a checkpoint, the log, the pictures of the log.
WRITERS = (
    (loop, "save_last", 2),
    (loop, "save_best", 1),
    (Tracker, "epoch", 2),
    (loop, "save_last", 3),
    (loop.Loop, "_write_importance", 1),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(resolve_recipe(EVERYTHING), folder, console=Console(quiet=True))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 8) as mounted:
        yield mounted


def before(
    patched: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[[], object]
) -> None:
    """Call `act` before the call number `number` of a function."""
    former, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            act()
        return former(*args, **kwargs)

    patched.setattr(owner, name, counted)


def assert_whole(path: Path) -> None:
    """No temporary is left, every line of the log is one, and every checkpoint that is there can be read."""
    left = [one.name for one in path.rglob(".*") if one.name != ".lock"]
    assert left == []
    assert not (path / ".lock").exists()
    for line in (path / "log.jsonl").read_text().splitlines():
        json.loads(line)
    for name in ("last", "best"):
        if resolve(path / "checkpoints" / name).is_dir():
            Run.open(path).load_plain() if name == "best" else load_file(
                path / "checkpoints/last/weights.safetensors"
            )


def assert_equal(run: Path, other: Run) -> None:
    for name in ("last", "best"):
        first, second = (
            load_file(path / "checkpoints" / name / "weights.safetensors") for path in (run, other.path)
        )
        assert all(torch.equal(first[key], second[key]) for key in second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "number"), WRITERS, ids=[f"{name}-{number}" for _, name, number in WRITERS]
)
def test_a_disk_that_fills_up_in_training(
    disk: SmallDisk,
    whole: Run,
    owner: Any,
    name: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        before(patched, owner, name, number, disk.fill)
        assert main([*WORDS, str(disk.path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {disk.path}" in error and "No space left on device" in error
    assert "free space there" in error and "Traceback" not in error
    assert_whole(disk.path / "run")
    disk.empty()
    assert main([*WORDS, str(disk.path), "--resume"]) == 0
    assert_equal(disk.path / "run", whole)
    assert_whole(disk.path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 4096, 20_000])
def test_a_disk_that_is_full_before_training_begins_leaves_no_run(
    disk: SmallDisk, leave: int, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill(leave)
    assert main([*WORDS, str(disk.path)]) == 2
    assert f"error: {disk.path}" in capsys.readouterr().err
    disk.empty()
    path = disk.path / "run"
    # what was written of a run can be gone on with, or be begun again
    assert main([*WORDS, str(disk.path), *(["--resume"] if (path / "recipe.yaml").exists() else [])]) == 0


@pytest.mark.slow
def test_a_read_only_disk_is_told_before_anything_is_trained(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(Session, "update", trained)
    disk.read_only()
    assert main([*WORDS, str(disk.path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {disk.path}" in error and "Read-only file system" in error and "--out" in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_without_a_disk_to_blame(
    tmp_path: Path, whole: Run, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above where nobody can mount a disk: the third checkpoint's sync fails, and the one before it goes on."""
    fsync = os.fsync
    begun: list[int] = []

    def failing(descriptor: int) -> None:
        if len(begun) >= 3:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        before(patched, loop, "save_last", 3, lambda: begun.extend([1, 2, 3]))
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            train(resolve_recipe(EVERYTHING), tmp_path / "run", console=Console(quiet=True))
    assert caught.value.errno == number
    assert str(tmp_path / "run" / "checkpoints") in str(caught.value.filename)
    assert_whole(tmp_path / "run")
    train(resolve_recipe(EVERYTHING), tmp_path / "run", resume=True, console=Console(quiet=True))
    assert_equal(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [16, 64])
def test_a_cache_on_a_full_disk_is_an_error_and_leaves_nothing(
    disk: SmallDisk,
    tmp_path: Path,
    kilobytes: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk.path))
    disk.fill(kilobytes << 10)
    words = ["train", str(EVERYTHING), "data.cache=disk", "--out", str(tmp_path), "--name", "run"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "a disk cache" in error and "Traceback" not in error
    assert not [path for path in disk.path.rglob("*") if path.is_file() and path.name != "filler"]
    assert not (tmp_path / "run").exists()
