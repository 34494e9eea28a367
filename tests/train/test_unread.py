"""Training goes on over samples that cannot be read: counted, reported, bit-equal after an interruption, bounded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.cli.main import main
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.errors import DataError
from compactmtl.train import Run, train
from tests.support.interrupting import trained_in_two_parts
from tests.support.layouts.folder import write_folder
from tests.support.processes import in_processes

RECIPE = """
data: {name: folder, size: [32, 48], batch_size: 4, cache: none, on_error: skip}
tasks:
  depth: {kind: depth, head: {kind: fcn, width: 8, dropout: 0.2}}
  weather: {kind: classification, target: weather}
model: {encoder: {name: resnet10t, options: {channels: [16, 16, 24, 32], stem_width: 16}}}
train: {epochs: 3, threads: 1}
"""
Make = Callable[..., Resolved]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(*overrides) -> the recipe on a folder of which two training images are cut short."""
    folder = write_folder(tmp_path / "data", count=48, size=(32, 48), split=True)
    for name in ("004", "010"):
        path = folder / "images" / "train" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *words: resolve_recipe(tmp_path / "recipe.yaml", [f"data.root={folder}", *words])


def quiet() -> Console:
    return Console(file=io.StringIO(), width=400)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def events(run: Run, kind: str) -> list[dict[str, object]]:
    return [event for event in run.log() if event["event"] == kind]


def assert_equal(one: Run, other: Run) -> None:
    for name in ("last", "best"):
        first, second = (
            load_file(run.path / "checkpoints" / name / "weights.safetensors") for run in (one, other)
        )
        assert all(torch.equal(first[key], second[key]) for key in second)
    for kind in ("epoch", "end"):
        for mine, theirs in zip(events(one, kind), events(other, kind), strict=True):
            assert mine["unread"] == theirs["unread"]


@pytest.mark.slow
def test_what_was_passed_over_is_counted_and_named(make: Make, tmp_path: Path) -> None:
    console = quiet()
    run = train(make(), tmp_path / "run", console=console)
    assert [event["unread"] for event in events(run, "epoch")] == [{"replaced": 2, "samples": 2}] * 3
    (end,) = events(run, "end")
    unread = end["unread"]
    assert isinstance(unread, dict)
    assert (unread["replaced"], unread["samples"]) == (6, 2)
    assert [Path(name).stem for name in unread["first"]] == ["004", "010"]
    text = said(console)
    assert (
        text.count("2 of 24 training samples could not be read so far; others took their place 2 times") == 3
    )
    assert "2 of 24 training samples could not be read; others took their place 6 times: " in text
    assert "004.jpg: not a whole image" in text


@pytest.mark.slow
def test_it_goes_on_bit_equal_with_workers_and_without(make: Make, tmp_path: Path) -> None:
    whole = train(make(), tmp_path / "whole", console=quiet())
    resumed = trained_in_two_parts(make("data.workers=1"), tmp_path / "run", quiet(), 9)
    assert_equal(resumed, whole)


@pytest.mark.slow
def test_a_run_that_a_damaged_image_ended_goes_on_with_skip(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is damaged from the start here, and met in mid-epoch."""
    path = tmp_path / "run"
    with pytest.raises(DataError, match=r"(004|010)\.jpg: not a whole image"):
        train(make("data.on_error=raise"), path, console=quiet())
    resumed = train(make(), path, resume=True, console=quiet())
    assert_equal(resumed, train(make(), tmp_path / "whole", console=quiet()))


def train_one(rank: int, folder: Path) -> None:
    resolved = resolve_recipe(folder / "recipe.yaml", [f"data.root={folder / 'data'}"])
    train(resolved, folder / "together", console=Console(quiet=True))


@pytest.mark.slow
def test_two_processes_count_together(make: Make, tmp_path: Path) -> None:
    in_processes(train_one, 2, tmp_path)
    run = Run.open(tmp_path / "together")
    assert [event["unread"] for event in events(run, "epoch")] == [{"replaced": 2, "samples": 2}] * 3
    whole = train(make(), tmp_path / "whole", console=quiet())
    assert events(run, "end")[0]["unread"] == events(whole, "end")[0]["unread"]


@pytest.mark.slow
def test_more_than_a_tenth_is_an_error_with_exit_code_2(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "images" / "train" / "020.jpg").write_bytes(b"")
    words = ["train", str(tmp_path / "recipe.yaml"), f"data.root={tmp_path / 'data'}"]
    assert main([*words, "--out", str(tmp_path), "--name", "run"]) == 2
    error = capsys.readouterr().err
    assert "3 of 24 training samples cannot be read, more than 10%" in error
    assert "004.jpg" in error and "data check" in error
