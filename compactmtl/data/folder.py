"""A folder of the user's own that needs no code: images/, a folder or table for each target, and dataset.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from compactmtl.artifacts.files import expanded
from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.config.validate import validate
from compactmtl.config.yaml import read_yaml
from compactmtl.data.bands import BAND_SUFFIXES
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.description import MAPS, FolderDescription, FolderTarget
from compactmtl.data.files import FileDataset, Files, Record, damaged, held_apart, part, some, source_of
from compactmtl.data.fit import Fit
from compactmtl.data.folder_inputs import Input, inputs_beside, read_inputs
from compactmtl.data.formats import read_depth, read_mask, read_normals
from compactmtl.data.images import read_picture
from compactmtl.data.names import Listing, Names, list_files, name_of
from compactmtl.data.pixels import ImageInfo
from compactmtl.data.stored import own_size
from compactmtl.data.tables import UNKNOWN_CLASS, Values, is_known, read_table, unknown_label
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "a folder of your own: images/, a folder or table for each target, and dataset.yaml"
DEFAULT_SIZE = (128, 128)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DESCRIPTION_FILE = "dataset.yaml"
MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".pgm")  # each gives back the numbers that were stored

_IGNORED = 255  # in the masks of images that have none, where dataset.yaml names no value
_MEND = "see docs/how-to/own-data.md for the folder format"


class Options(Frozen):
    """folder has no options: dataset.yaml says everything."""


@dataclass(frozen=True)
class Item(Record):
    """One image, the map files that it has by target, and its label in every table."""

    maps: tuple[tuple[str, Path], ...] = ()
    values: tuple[tuple[str, Values], ...] = ()
    inputs: tuple[tuple[str, Input], ...] = ()  # beside the image


@dataclass(frozen=True)
class Folder:
    """A described folder: its items by split, its targets' specifications but the scalars', and notes."""

    path: Path
    described: FolderDescription
    items: Mapping[Split, Sequence[Item]]
    ignored: Mapping[str, int | None]  # by mask target
    notes: tuple[str, ...]


def open_folder(root: str | None) -> Folder:
    """Read dataset.yaml, the tables and the names of all files.

    Raises DataError (or ConfigError for dataset.yaml), naming file and line, for what is missing or does not parse.
    """
    if root is None:
        raise DataError(
            "data.root: folder needs the folder that holds dataset.yaml", f"give root=FOLDER; {_MEND}"
        )
    top = expanded(root)
    path = top / DESCRIPTION_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file (data.root of folder)", _MEND)
    described = validate(FolderDescription, read_yaml(path), "data set description")
    images = list_files(top / described.images, BAND_SUFFIXES, _MEND)
    if not images.files:
        raise DataError(f"{images.folder}: no image{_not_read(images)}", _MEND)
    notes = [f"{images.folder}{_not_read(images)}"] if images.others else []
    maps: dict[str, Mapping[str, Path]] = {}
    values: dict[str, Mapping[str, Values]] = {}
    for name, target in described.targets.items():
        if target.kind in MAPS:
            maps[name], said = _maps(top / (target.path or name), images)
        else:
            table = read_table(top / (target.path or f"{name}.csv"), target)
            values[name], said = table.matched(images.files, images.folder)
        notes += said
    every = {name: _item(described, maps, values, name, image) for name, image in images.files.items()}
    bare = {name for name, item in every.items() if len(item.unknown) == len(described.targets)}
    items = {name: item for name, item in every.items() if name not in bare}
    if not items:
        raise DataError(f"{images.folder}: not one of {len(bare)} images has a label of any target", _MEND)
    if bare:
        notes.append(
            f"{len(bare)} images have no label of any target and are passed over: {some(sorted(bare))}"
        )
    by_split, said = _split(top, described, items, bare)
    return Folder(top, described, by_split, _ignored(described, items), (*notes, *said))


def load(config: DataConfig, split: Split) -> FileDataset[Item]:
    """The images of a split with the targets that dataset.yaml names; a label that an image lacks is unknown."""
    validate_options(Options, config.options, "data.options")
    folder = _with_inputs(open_folder(config.root), config)
    source = source_of(split)
    if not folder.items[source]:
        raise DataError(f"{folder.path}: split {source} holds no image", _MEND)
    records = held_apart(folder.items[source], config, split)
    training = held_apart(folder.items["train"], config, "train")
    values = [(record.values, record.unknown) for record in records]  # part of what a disk cache holds
    key: list[object] = [folder.described.model_dump(mode="json"), dict(folder.ignored), values]
    if config.inputs:
        inputs = {name: one.model_dump(mode="json") for name, one in config.inputs.items()}
        key += [inputs, [record.inputs for record in records]]
    files = Files(folder.path, records, _reader(config, folder), key, folder.notes)
    return FileDataset(config, split, _specs(folder, training), files)


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    validate_options(Options, config.options, "data.options")
    folder = _with_inputs(open_folder(config.root), config)
    bad: list[str] = []
    for split, items in folder.items.items():
        if not items and split != "test":
            bad.append(f"{folder.path}: split {split} holds no image")
        bad += damaged(items, _reader(config, folder), split)
    return bad, list(folder.notes)


def _with_inputs(folder: Folder, config: DataConfig) -> Folder:
    """The folder with what the recipe's network takes beside the images. Raises as `inputs_beside` does."""
    described, images = folder.described, folder.path / folder.described.images
    names = [item.name for items in folder.items.values() for item in items]
    beside = inputs_beside(folder.path, described.inputs, config, names, images)
    if not beside:
        return folder

    def completed(item: Item) -> Item:
        inputs = tuple((name, values[item.name]) for name, values in beside.items())
        files = tuple(one for _, one in inputs if isinstance(one, Path))
        return replace(item, inputs=inputs, files=(*item.files, *files))

    return replace(
        folder, items={split: [completed(item) for item in items] for split, items in folder.items.items()}
    )


def _not_read(listing: Listing) -> str:
    """What to say of files that are there and are not read; empty where there are none."""
    if not listing.others:
        return ""
    endings = sorted({path.suffix or path.name for path in listing.others})
    names = some([path.relative_to(listing.folder).as_posix() for path in listing.others])
    return f": {len(listing.others)} files are not read ({some(endings, 5)} is no ending that is): {names}"


def _maps(folder: Path, images: Listing) -> tuple[Mapping[str, Path], list[str]]:
    """The map files of images by the image's name, and notes on maps without an image, images without a map, and others."""
    maps = list_files(folder, MAP_SUFFIXES, _MEND)
    own = {name: path for name, path in maps.files.items() if name in images.files}
    strays = [path for name, path in maps.files.items() if name not in own]
    notes = [f"{folder}{_not_read(maps)}"] if maps.others else []
    if strays:
        inner = strays[0].relative_to(folder).as_posix()
        hint = Names(images.files, images.folder).meant(inner)
        notes.append(
            f"{folder}: {len(strays)} of {len(maps.files)} maps belong to no image, such as {inner}; {hint}"
        )
    if not own:
        said = "; ".join(notes) or f"{folder}: no maps"
        raise DataError(
            f"{said}; no image has a map here", "maps have the names of their images and end in .png"
        )
    bare = [name for name in images.files if name not in own]
    if bare:
        notes.append(f"{folder}: {len(bare)} images have no map: {some(bare)}")
    return own, notes


def _item(
    described: FolderDescription,
    maps: Mapping[str, Mapping[str, Path]],
    values: Mapping[str, Mapping[str, Values]],
    name: str,
    image: Path,
) -> Item:
    """One image with all that is known of it."""
    own = tuple((key, files[name]) for key, files in maps.items() if name in files)
    labels = tuple(
        (key, table.get(name, unknown_label(described.targets[key]))) for key, table in values.items()
    )
    there = {key for key, _ in own} | {key for key, row in labels if is_known(described.targets[key], row)}
    unknown = tuple(key for key in described.targets if key not in there)
    return Item(name, image, tuple(path for _, path in own), own, labels, unknown=unknown)


def _ignored(described: FolderDescription, items: Mapping[str, Item]) -> dict[str, int | None]:
    """The value that counts nowhere in each mask; one is needed where an image has no mask."""
    lacking = {key for item in items.values() for key in item.unknown}
    return {
        key: _IGNORED if target.ignore_index is None and key in lacking else target.ignore_index
        for key, target in described.targets.items()
        if target.kind == "mask"
    }


def _split(
    top: Path, described: FolderDescription, items: Mapping[str, Item], bare: set[str]
) -> tuple[dict[Split, Sequence[Item]], list[str]]:
    """By lists train.txt and val.txt, by folders images/train and images/val, or by a hash of the names."""
    lists = {split: top / f"{split}.txt" for split in SPLITS}
    if lists["train"].is_file() or lists["val"].is_file():
        listed = {
            split: _read_list(path, items, bare, top / described.images) for split, path in lists.items()
        }
        for one, other in combinations(SPLITS, 2):
            if both := sorted(set(listed[one]) & set(listed[other])):
                raise DataError(
                    f"{lists[other]}: {len(both)} images are in {lists[one].name} too: {some(both)}",
                    "an image belongs to one split",
                )
        inside = {name for names in listed.values() for name in names}
        remaining = [name for name in items if name not in inside]
        notes = (
            [f"{len(remaining)} images are in no list and are passed over: {some(remaining)}"]
            if remaining
            else []
        )
        return {split: [items[name] for name in names] for split, names in listed.items()}, notes
    folders = {
        split: [item for name, item in items.items() if name.startswith(f"{split}/")] for split in SPLITS
    }
    if folders["train"] or folders["val"]:
        outside = [name for name in items if name.partition("/")[0] not in SPLITS]
        notes = (
            [f"{len(outside)} images are in no split's folder and are passed over: {some(outside)}"]
            if outside
            else []
        )
        return {split: folders[split] for split in SPLITS}, notes
    shares: dict[Split, float] = {"val": described.val, "test": described.test}
    by_hash: dict[Split, Sequence[Item]] = {
        split: part(list(items.values()), shares, split)
        for split in SPLITS
        if split == "train" or shares[split]
    }
    note = f"no train.txt and no {described.images}/train: {described.val:.0%} of the images are val by a hash of the names"
    return {split: by_hash.get(split, ()) for split in SPLITS}, [note]


def _read_list(path: Path, items: Mapping[str, Item], bare: set[str], images: Path) -> list[str]:
    """Names of a split's images, one a line. Raises DataError, naming the line, for an image that is not there."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({error})", "save it as UTF-8 text") from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.strip()
        name = name_of(word)
        if not name or name in bare:
            continue
        if name not in items:
            hint = Names([*items, *sorted(bare)], images).meant(word)
            raise DataError(f"{path}:{number}: no image {word}", hint)
        if name in numbers:
            raise DataError(
                f"{path}:{number}: image {word} is listed twice, in line {numbers[name]} too",
                "take one of the lines out",
            )
        numbers[name] = number
    return list(numbers)


def _specs(folder: Folder, training: Sequence[Item]) -> dict[str, TargetSpec]:
    specs: dict[str, TargetSpec] = {}
    for key, target in folder.described.targets.items():
        if target.kind == "scalar":
            values = np.array([dict(item.values)[key][0] for item in training], np.float64)
            values = values[np.isfinite(values)]
            mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
            specs[key] = TargetSpec("scalar", unit=target.unit, mean=mean, std=max(std, 1e-6))
        elif target.kind == "depth":
            specs[key] = TargetSpec("depth", unit="m")
        elif target.kind == "class":
            specs[key] = TargetSpec("class", classes=target.classes, ignore_index=UNKNOWN_CLASS)
        else:
            specs[key] = TargetSpec(
                target.kind,
                classes=target.classes,
                ignore_index=folder.ignored.get(key),
                mirrored=target.mirrored,
            )
    return specs


def _reader(config: DataConfig, folder: Folder) -> Callable[[Item], Arrays]:
    fits = {name: image_fit(config, name) for name, one in config.others.items() if one.is_picture}
    return partial(_read, image_fit(config), fits, folder.described, folder.ignored)


def _read(
    fit: Fit,
    fits: Mapping[str, Fit],
    described: FolderDescription,
    ignored: Mapping[str, int | None],
    item: Item,
) -> Arrays:
    image, info = read_picture(item.image, fit)
    arrays: Arrays = {"image": image, **own_size(info.size), **read_inputs(item.inputs, fits, info)}
    maps = dict(item.maps)
    for key, target in described.targets.items():
        if target.kind in MAPS:
            arrays[key] = _map(fit, described, target, ignored.get(key), maps.get(key), info)
    for key, row in item.values:
        kind = described.targets[key].kind
        if kind == "multilabel":
            arrays[key] = np.array(row, np.float32)
        else:
            arrays[key] = np.array(row[0], np.int64 if kind == "class" else np.float32)
    return arrays


def _map(
    fit: Fit,
    described: FolderDescription,
    target: FolderTarget,
    ignored: int | None,
    path: Path | None,
    info: ImageInfo,
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """A map at the network's size; where there is no file one of which nothing is known."""
    if target.kind == "mask":
        if path is None:
            return np.full(fit.size, ignored, np.uint8)
        return read_mask(path, fit, len(target.classes), ignored, info, described.drawn)
    if target.kind == "depth":
        if path is None:
            return np.zeros((1, *fit.size), np.float32)
        return read_depth(path, fit, target.units_per_metre, None, info, described.drawn)
    if path is None:
        return np.zeros((3, *fit.size), np.float32)
    return read_normals(path, fit, info, described.drawn)
