"""A folder of the user's own that needs no code: images/, a folder or table for each target, and dataset.yaml."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen, Share
from compactmtl.config.validate import validate
from compactmtl.config.yaml import read_yaml
from compactmtl.data.base import Split
from compactmtl.data.cache import Arrays
from compactmtl.data.files import (
    FileDataset,
    Record,
    damaged,
    held_apart,
    part,
    some,
    source_of,
)
from compactmtl.data.formats import read_depth, read_mask, read_normals
from compactmtl.data.images import read_image
from compactmtl.data.pixels import IMAGE_SUFFIXES
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "a folder of your own: images/, a folder or table for each target, and dataset.yaml"
DEFAULT_SIZE = (128, 128)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DESCRIPTION_FILE = "dataset.yaml"

_MAPS = ("mask", "depth", "normals")
_MEND = "see docs/datasets.md for the folder format"


class Options(Frozen):
    """folder has no options: dataset.yaml says everything."""


class FolderTarget(Frozen):
    """One target: a folder of maps named like the images (mask, depth, normals), or a CSV table (the others)."""

    kind: Literal["mask", "depth", "normals", "class", "multilabel", "scalar"]
    path: str | None = Field(None, description="folder or .csv file; by default the target's name")
    classes: tuple[str, ...] = Field((), description="names of the classes, in the order of their numbers")
    ignore_index: Annotated[int, Field(ge=0, le=255)] | None = Field(
        None, description="mask value that counts nowhere"
    )
    mirrored: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of a mask's classes that change places in a mirror image"
    )
    unit: str = Field("", description="unit of a scalar, such as years; of depth it is metres")
    units_per_metre: Annotated[float, Field(gt=0)] = Field(
        1000.0, description="what one metre is in depth files"
    )

    @model_validator(mode="after")
    def _classes(self) -> FolderTarget:
        least = {"mask": 2, "class": 2, "multilabel": 1}.get(self.kind, 0)
        if len(self.classes) < least:
            raise ValueError(f"classes needs at least {least} names for a target of kind {self.kind}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names one class twice")
        if self.kind == "mask" and len(self.classes) > 255:
            raise ValueError("classes has more than 255 names, which a mask cannot hold")
        if self.mirrored and self.kind != "mask":
            raise ValueError(f"mirrored is of masks, not of a target of kind {self.kind}")
        if unknown := {label for pair in self.mirrored for label in pair} - set(self.classes):
            raise ValueError(f"mirrored names {min(unknown)!r}, which is none of the classes")
        return self


class FolderDescription(Frozen):
    """The contents of dataset.yaml."""

    description: str = ""
    images: str = Field("images", description="folder of the images")
    targets: dict[str, FolderTarget] = Field(min_length=1)
    val: Share = Field(
        0.2, description="share of the images for val, where neither folders nor lists split them"
    )
    test: Share = Field(0.0, description="the same for test")

    @model_validator(mode="after")
    def _shares(self) -> FolderDescription:
        if not 0 < self.val + self.test < 1 or self.val == 0:
            raise ValueError("val and test need to leave images for each split: val > 0, val + test < 1")
        return self


@dataclass(frozen=True)
class Item(Record):
    """One image, its map files by target, and its row of every table."""

    maps: tuple[tuple[str, Path], ...] = ()
    values: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Folder:
    """A described folder: its items by split, and what is to be told of them."""

    path: Path
    described: FolderDescription
    items: Mapping[Split, Sequence[Item]]
    notes: tuple[str, ...]


def open_folder(root: str | None) -> Folder:
    """Read dataset.yaml, the tables and the names of all files.

    Raises DataError (or ConfigError for dataset.yaml), naming file and line, for what is missing or does not parse.
    """
    if root is None:
        raise DataError(
            "data.root: folder needs the folder that holds dataset.yaml", f"give root=FOLDER; {_MEND}"
        )
    top = Path(root).expanduser()
    path = top / DESCRIPTION_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file (data.root of folder)", _MEND)
    described = validate(FolderDescription, read_yaml(path), "data set description")
    tables = {
        name: read_table(top / (target.path or f"{name}.csv"), target)
        for name, target in described.targets.items()
        if target.kind not in _MAPS
    }
    files = _image_files(top / described.images)
    items: dict[str, Item] = {}
    partial: list[str] = []
    for name, image in files.items():
        item = _item(top, described, tables, name, image)
        if item is None:
            partial.append(name)
        else:
            items[name] = item
    if not items:
        raise DataError(
            f"{top / described.images}: no image with every target"
            + (f", {len(partial)} without" if partial else ""),
            _MEND,
        )
    notes = [f"{len(partial)} images lack a target and are passed over: {some(partial)}"] if partial else []
    by_split, said = _split(top, described, items, set(partial))
    return Folder(top, described, by_split, (*notes, *said))


def load(config: DataConfig, split: Split) -> FileDataset[Item]:
    """The images of a split with the targets that dataset.yaml names."""
    validate_options(Options, config.options, "data.options")
    folder = open_folder(config.root)
    source = source_of(split)
    if not folder.items[source]:
        raise DataError(f"{folder.path}: split {source} holds no image", _MEND)
    records = held_apart(folder.items[source], config, split)
    training = held_apart(folder.items["train"], config, "train")
    values = [record.values for record in records]  # part of what a disk cache holds
    key = [folder.described.model_dump(mode="json"), values]
    return FileDataset(
        config, split, _specs(folder.described, training), records, _reader(config, folder), folder.path, key
    )


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    validate_options(Options, config.options, "data.options")
    folder = open_folder(config.root)
    bad: list[str] = []
    for split, items in folder.items.items():
        if not items and split != "test":
            bad.append(f"{folder.path}: split {split} holds no image")
        bad += damaged(items, _reader(config, folder), split)
    return bad, list(folder.notes)


def read_table(path: Path, target: FolderTarget) -> dict[str, tuple[float, ...]]:
    """Values by image name without its ending, from a CSV with a header.

    `image,value` holds a class's name or number, or a scalar; a multi-label table has a column for each class, with 1,
    0, or nothing where it is unknown, as a scalar may have. Raises DataError, naming the line, for what does not parse.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such table", _MEND) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not a readable CSV file ({error})", "save it as UTF-8 text with commas"
        ) from error
    header = ["image", *target.classes] if target.kind == "multilabel" else ["image", "value"]
    found = [word.strip() for word in rows[0]] if rows else []
    if found[:1] != ["image"] or sorted(found) != sorted(header):
        raise DataError(
            f"{path}:1: columns {', '.join(found) or 'none'}, expected {', '.join(header)}", _MEND
        )
    order = [found.index(word) for word in header]
    table: dict[str, tuple[float, ...]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(word.strip() for word in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{path}:{number}: {len(row)} values, expected {len(header)}", _MEND)
        image, *words = (row[place].strip() for place in order)
        name = Path(image).with_suffix("").as_posix() if image.lower().endswith(IMAGE_SUFFIXES) else image
        if name in table:
            raise DataError(f"{path}:{number}: image {image} is listed twice", "take one of the lines out")
        table[name] = tuple(_value(word, target, f"{path}:{number}") for word in words)
    return table


def _value(word: str, target: FolderTarget, where: str) -> float:
    if target.kind == "class":
        if word in target.classes:
            return float(target.classes.index(word))
        if word.isdigit() and int(word) < len(target.classes):
            return float(word)
        raise DataError(f"{where}: no class {word!r}", f"the classes are {', '.join(target.classes)}")
    if target.kind == "multilabel":
        if word not in ("1", "0", "-1", ""):
            raise DataError(
                f"{where}: {word!r} is neither 1, 0 nor empty", "1 present, 0 absent, empty unknown"
            )
        return float(word or -1)
    if not word:
        return math.nan
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {word!r} is not a number", "give a finite value, or nothing for unknown")
    return value


def _image_files(folder: Path) -> dict[str, Path]:
    """Images below a folder by their path in it without the ending."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", _MEND)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.suffix.lower() not in IMAGE_SUFFIXES or any(word.startswith(".") for word in inner.parts):
            continue
        name = inner.with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{path}: {found[name].name} has the same name", "rename one of the two")
        found[name] = path
    return found


def _item(
    top: Path,
    described: FolderDescription,
    tables: Mapping[str, Mapping[str, tuple[float, ...]]],
    name: str,
    image: Path,
) -> Item | None:
    """One image with all its targets; None where it lacks one."""
    maps: list[tuple[str, Path]] = []
    values: list[tuple[str, tuple[float, ...]]] = []
    for key, target in described.targets.items():
        if target.kind in _MAPS:
            path = top / (target.path or key) / f"{name}.png"
            if not path.is_file():
                return None
            maps.append((key, path))
        else:
            # A table may name an image in a split's folder by its file's name alone.
            row = tables[key].get(name, tables[key].get(name.rpartition("/")[2]))
            if row is None:
                return None
            values.append((key, row))
    return Item(name, image, tuple(path for _, path in maps), tuple(maps), tuple(values))


def _split(
    top: Path, described: FolderDescription, items: Mapping[str, Item], partial: set[str]
) -> tuple[dict[Split, Sequence[Item]], list[str]]:
    """By lists train.txt and val.txt, by folders images/train and images/val, or by a hash of the names."""
    lists = {split: top / f"{split}.txt" for split in SPLITS}
    if lists["train"].is_file() or lists["val"].is_file():
        listed = {split: _read_list(path, items, partial) for split, path in lists.items()}
        for one, other in combinations(SPLITS, 2):
            if both := sorted(set(listed[one]) & set(listed[other])):
                raise DataError(
                    f"{lists[other]}: {len(both)} images are in {lists[one].name} too: {some(both)}",
                    "an image belongs to one split",
                )
        return {split: [items[name] for name in names] for split, names in listed.items()}, []
    folders = {
        split: [item for name, item in items.items() if name.startswith(f"{split}/")] for split in SPLITS
    }
    if folders["train"] or folders["val"]:
        outside = len(items) - sum(map(len, folders.values()))
        notes = [f"{outside} images are in no split's folder and are passed over"] if outside else []
        return {split: folders[split] for split in SPLITS}, notes
    shares: dict[Split, float] = {"val": described.val, "test": described.test}
    by_hash: dict[Split, Sequence[Item]] = {
        split: part(list(items.values()), shares, split)
        for split in SPLITS
        if split == "train" or shares[split]
    }
    note = f"no train.txt and no {described.images}/train: {described.val:.0%} of the images are val by a hash of the names"
    return {split: by_hash.get(split, ()) for split in SPLITS}, [note]


def _read_list(path: Path, items: Mapping[str, Item], partial: set[str]) -> list[str]:
    """Names of a split's images, one a line. Raises DataError, naming the line, for an image that is not there."""
    if not path.is_file():
        return []
    names: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        word = line.strip()
        if not word:
            continue
        name = Path(word).with_suffix("").as_posix() if word.lower().endswith(IMAGE_SUFFIXES) else word
        if name in items:
            names[name] = None
        elif name not in partial:
            raise DataError(
                f"{path}:{number}: no image {word}", "name images as they lie in the images folder"
            )
    return list(names)


def _specs(described: FolderDescription, training: Sequence[Item]) -> dict[str, TargetSpec]:
    specs: dict[str, TargetSpec] = {}
    for key, target in described.targets.items():
        if target.kind == "scalar":
            values = np.array([dict(item.values)[key][0] for item in training], np.float64)
            values = values[np.isfinite(values)]
            mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
            specs[key] = TargetSpec("scalar", unit=target.unit, mean=mean, std=max(std, 1e-6))
        elif target.kind == "depth":
            specs[key] = TargetSpec("depth", unit="m")
        else:
            specs[key] = TargetSpec(
                target.kind,
                classes=target.classes,
                ignore_index=target.ignore_index,
                mirrored=target.mirrored,
            )
    return specs


def _reader(config: DataConfig, folder: Folder) -> Callable[[Item], Arrays]:
    targets = folder.described.targets

    def read(item: Item) -> Arrays:
        arrays: Arrays = {"image": read_image(item.image, config.size)}
        for key, path in item.maps:
            target = targets[key]
            if target.kind == "mask":
                arrays[key] = read_mask(path, config.size, len(target.classes), target.ignore_index)
            elif target.kind == "depth":
                arrays[key] = read_depth(path, config.size, target.units_per_metre)
            else:
                arrays[key] = read_normals(path, config.size)
        for key, row in item.values:
            kind = targets[key].kind
            if kind == "multilabel":
                arrays[key] = np.array(row, np.float32)
            else:
                arrays[key] = np.array(row[0], np.int64 if kind == "class" else np.float32)
        return arrays

    return read
