"""A run goes on with the data it began with, wherever they lie, or says what has changed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torch import Tensor

from compactmtl.cli.main import main
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.errors import CompactWarning, ConfigError, DataError
from compactmtl.train import TrainingInterrupted, train
from compactmtl.train.session import Session

RECIPE = """
data: {{name: folder, root: {root}, size: [32, 32], batch_size: 4}}
tasks: {{height: {{kind: regression}}, part: {{kind: segmentation, head: {{kind: fcn, width: 4}}}}}}
model: {{encoder: {{name: test_resnet}}}}
train: {{epochs: 3, threads: 1}}
"""
DESCRIPTION = """
targets:
  height: {kind: scalar, unit: cm}
  part: {kind: mask, classes: [none, some]}
"""


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (36, 36, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.random.default_rng(seed).integers(0, 2, (36, 36))).astype(np.uint8)).save(path)


def write_rows(root: Path, heights: dict[int, int]) -> None:
    rows = "".join(f"{number:03d},{height}\n" for number, height in heights.items())
    (root / "height.csv").write_text("image,value\n" + rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of twelve images with a number and a mask each."""
    root = tmp_path / "data"
    for number in range(12):
        write_image(root / "images" / f"{number:03d}.bmp", number)
        write_mask(root / "part" / f"{number:03d}.png", number)
    (root / "dataset.yaml").write_text(DESCRIPTION)
    write_rows(root, {number: 100 + number for number in range(12)})
    return root


def recipe(root: Path) -> Resolved:
    path = root.parent / "recipe.yaml"
    path.write_text(RECIPE.format(root=root))
    return resolve_recipe(path)


@pytest.fixture
def begun(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the folder that was interrupted in its second epoch."""
    update = Session.update

    def signalling(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if self.position.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", signalling)
        with pytest.raises(TrainingInterrupted):
            train(recipe(root), tmp_path / "run", console=Console(quiet=True))
    return tmp_path / "run"


def new_image(root: Path) -> None:
    write_image(root / "images" / "099.bmp", 99)
    write_mask(root / "part" / "099.png", 99)
    write_rows(root, {number: 100 + number for number in (*range(12), 99)})


def lost_image(root: Path) -> None:
    (root / "images" / "003.bmp").unlink()
    write_rows(root, {number: 100 + number for number in range(12) if number != 3})


def another_image_of_the_same_size(root: Path) -> None:
    write_image(root / "images" / "003.bmp", 77)


def another_mask(root: Path) -> None:
    write_mask(root / "part" / "003.png", 77)


def another_number(root: Path) -> None:
    write_rows(root, {number: 100 + number + (number == 3) for number in range(12)})


def classes_in_another_order(root: Path) -> None:
    (root / "dataset.yaml").write_text(DESCRIPTION.replace("none, some", "some, none"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (new_image, r"\d+ samples then, \d+ now; 1 new \(099\)"),
        (lost_image, r"1 gone \(003\)|gone .*003"),
        (another_image_of_the_same_size, r"(train|val): 1 changed \(003\)"),
        (another_mask, r"(train|val): 1 changed \(003\)"),
        (another_number, r"(train|val): 1 changed \(003\)"),
    ],
)
def test_a_changed_data_set_is_refused_with_what_changed(
    begun: Path, root: Path, change: Callable[[Path], None], message: str
) -> None:
    change(root)
    with pytest.raises(DataError, match=message) as caught:
        train(recipe(root), begun, resume=True, console=Console(quiet=True))
    assert caught.value.exit_code == 2
    assert "--accept-changed-data" in caught.value.hint


@pytest.mark.slow
def test_data_that_moved_and_were_touched_are_the_same(begun: Path, root: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(root, tmp_path / "elsewhere"))
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert train(recipe(moved), begun, resume=True, console=Console(quiet=True)).finished


@pytest.mark.slow
def test_accepted_data_are_said_logged_and_accepted_for_good(
    begun: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_image(root)
    recipe(root)
    words = [
        "train",
        str(root.parent / "recipe.yaml"),
        "--out",
        str(begun.parent),
        "--name",
        "run",
        "--resume",
    ]
    assert main([*words, "--accept-changed-data", "train.epochs=3"]) == 0
    assert "the data set changed and is taken as it is" in capsys.readouterr().out
    run = train(recipe(root), begun, resume=True, console=Console(quiet=True))
    assert run.finished
    resumed = next(event for event in run.log() if event["event"] == "resume")
    assert any("099" in line for line in resumed["data_changed"])


@pytest.mark.slow
def test_statistics_stay_those_of_the_run_where_changed_data_are_accepted(begun: Path, root: Path) -> None:
    write_rows(root, {number: 1000 + number for number in range(12)})
    before = (begun / "meta.json").read_text()
    run = train(recipe(root), begun, resume=True, accept_changed_data=True, console=Console(quiet=True))
    assert (begun / "meta.json").read_text() == before
    assert 100 < run.tasks["height"].spec.mean < 112


@pytest.mark.slow
def test_targets_of_other_classes_are_refused_whatever_is_accepted(begun: Path, root: Path) -> None:
    classes_in_another_order(root)
    with pytest.raises(DataError, match=r"target part: classes changed"):
        train(recipe(root), begun, resume=True, accept_changed_data=True, console=Console(quiet=True))


@pytest.mark.slow
def test_a_run_of_an_older_version_goes_on_with_a_note(begun: Path, root: Path) -> None:
    (begun / "data.json").unlink()
    with pytest.warns(CompactWarning, match="changes of its data go unnoticed"):
        train(recipe(root), begun, resume=True, console=Console(quiet=True))
    assert (begun / "data.json").exists()


def test_the_option_without_resume_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(root)
    assert main(["train", str(root.parent / "recipe.yaml"), "--accept-changed-data"]) == 2
    assert "--accept-changed-data needs --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_replacing_that_was_cut_off_is_told_and_done_again(
    begun: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the old run was set aside, before the new one was written."""
    with monkeypatch.context() as patched:
        patched.setattr("compactmtl.artifacts.run_folder.write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(root), begun, overwrite=True, console=Console(quiet=True))
    with pytest.raises(ConfigError, match="replacing was cut off"):
        train(recipe(root), begun, console=Console(quiet=True))
    assert train(recipe(root), begun, overwrite=True, console=Console(quiet=True)).finished
    assert not (begun / ".replaced").exists()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_start_that_was_cut_off_can_be_made_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("compactmtl.artifacts.run_folder.update_recipe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(root), tmp_path / "run", console=Console(quiet=True))
    assert (tmp_path / "run" / "meta.json").exists()
    assert train(recipe(root), tmp_path / "run", console=Console(quiet=True)).finished
