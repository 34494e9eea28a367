"""What the check says of labels that are not there: in one of several data sets, in all of them, and where a teacher is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compactmtl.config.recipe import DataConfig
from compactmtl.config.validate import validate_options
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.sources import SourcesDataset
from tests.support.layouts.folder import write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders of rooms, of five training images each, in `one` and `other`."""
    for number, name in enumerate(("one", "other")):
        write_folder(tmp_path / name, split=True, seed=number)
    return tmp_path


def without_heights(folder: Path, split: str = "") -> None:
    """Take the heights of a split, or of all images, away: what is left is an empty cell each."""
    lines = (folder / "height.csv").read_text().splitlines()
    emptied = [f"{line.partition(',')[0]}," if line.startswith(split) else line for line in lines[1:]]
    (folder / "height.csv").write_text("\n".join([lines[0], *emptied]) + "\n")


def config(root: Path, tasks: tuple[str, ...] = ("height", "segmentation"), **fields: Any) -> DataConfig:
    sources = [
        {"name": "folder", "alias": name, "root": str(root / name), "tasks": list(tasks)}
        for name in ("one", "other")
    ]
    return validate_options(
        DataConfig, {"size": [24, 32], "batch_size": 4, "sources": sources} | fields, "data"
    )


def test_a_source_without_a_label_of_its_task_is_noted(root: Path) -> None:
    without_heights(root / "other", "train/")
    report = check_dataset(config(root))
    assert report.problems == []
    assert report.known["train of other"]["height"] == 0
    assert report.known["train"]["height"] == 5
    (note,) = [note for note in report.notes if "height" in note]
    assert note.startswith(
        "target height: no sample of train of other has a label, so a task of it cannot be learned"
    )


def test_a_task_that_no_source_has_a_label_of_is_noted_once(root: Path) -> None:
    for name in ("one", "other"):
        without_heights(root / name)
    report = check_dataset(config(root))
    assert [note for note in report.notes if "height" in note] == [
        "target height: no sample of train has a label, so a task of it cannot be learned",
        "target height: no sample of val has a label, so a task of it cannot be measured there",
    ]
    assert "known 0.0%" in report.targets["height"]


def test_statistics_are_those_of_the_sources_that_have_labels(root: Path) -> None:
    alone = load_dataset("folder", "train", root=str(root / "one"), size=(24, 32)).specs["height"]
    without_heights(root / "other")
    dataset = load_dataset(config(root), "train")
    assert isinstance(dataset, SourcesDataset)
    assert (dataset.specs["height"].mean, dataset.specs["height"].std) == (alone.mean, alone.std)


def test_what_a_teacher_is_asked_for_is_counted(root: Path) -> None:
    without_heights(root / "other", "train/")
    (root / "net.onnx").touch()
    teachers = {
        "height": {"teacher": str(root / "net.onnx"), "agreement": 2.0},
        "segmentation": {"teacher": str(root / "gone")},
    }
    report = check_dataset(config(root, pseudo_labels=teachers))
    assert report.pseudo_labels == [
        f"height: 5 of 10 training samples have a label, {root / 'net.onnx'} is to label 5 more at agreement <= 2; training "
        "counts those that it does",
        f"segmentation: 10 of 10 training samples have a label, {root / 'gone'} is to label 0 more; training counts those "
        "that it does",
    ]
    assert report.problems == [f"data.pseudo_labels.segmentation.teacher: {root / 'gone'} is not there"]
