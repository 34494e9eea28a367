"""Clothing Co-Parsing: street fashion photos with 59 classes of garments. Source: Yang, Luo, Lin, CVPR 2014."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from compactmtl.artifacts.files import parse_json
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
from compactmtl.data.formats import mask_at, read_mask
from compactmtl.data.images import read_picture
from compactmtl.data.stored import own_size
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "street fashion photos with segmented garments and tags; the user's own download"
DEFAULT_SIZE = (192, 128)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
IMAGES, LABELS, TAGS = ("images", "labels", "tags.json")
CLASSES = (
    "null", "accessories", "bag", "belt", "blazer", "blouse", "bodysuit", "boots", "bra", "bracelet", "cape",
    "cardigan", "clogs", "coat", "dress", "earrings", "flats", "glasses", "gloves", "hair", "hat", "heels", "hoodie",
    "intimate", "jacket", "jeans", "jumper", "leggings", "loafers", "necklace", "panties", "pants", "pumps", "purse",
    "ring", "romper", "sandals", "scarf", "shirt", "shoes", "shorts", "skin", "skirt", "sneakers", "socks",
    "stockings", "suit", "sunglasses", "sweater", "sweatshirt", "swimwear", "t-shirt", "tie", "tights", "top", "vest",
    "wallet", "watch", "wedges",
)  # fmt: skip

# The long tail (many classes are in fewer than 20 photos) made learnable; each class is in one group.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "background": ("null",),
    "skin": ("skin",),
    "hair": ("hair",),
    "top": (
        "blouse", "bodysuit", "bra", "hoodie", "intimate", "jumper", "shirt", "sweater", "sweatshirt", "swimwear",
        "t-shirt", "top",
    ),
    "outerwear": ("blazer", "cape", "cardigan", "coat", "jacket", "suit", "vest"),
    "dress": ("dress", "romper"),
    "bottom": ("jeans", "leggings", "panties", "pants", "shorts", "skirt"),
    "legwear": ("socks", "stockings", "tights"),
    "footwear": (
        "boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers", "wedges",
    ),
    "bag": ("bag", "purse", "wallet"),
    "accessories": (
        "accessories", "belt", "bracelet", "earrings", "glasses", "gloves", "hat", "necklace", "ring", "scarf",
        "sunglasses", "tie", "watch",
    ),
}  # fmt: skip

_IGNORE = 255  # no pixel is unknown; for the border that a random shift lays bare
_LAST: Mapping[Split, int] = {"train": 804, "val": 904, "test": 1004}  # the authors fix no split; by number
_MEND = (
    "download https://github.com/bearpaw/clothing-co-parsing and convert it with tools/prepare_ccp.py, "
    "or set data.root to the folder that holds images/ and labels/"
)


class Options(Frozen):
    """`data.options` of ccp."""

    classes: Literal["all", "grouped"] = Field(
        "all", description="the 59 classes, or 11 groups of them, such as top and footwear"
    )
    tags: tuple[str, ...] | None = Field(
        None, description="classes whose presence the target `tags` tells; by default all but background"
    )


@dataclass(frozen=True)
class Photo(Record):
    """One photo and its label map."""

    labels: Path = Path()


def folder_of(root: str | None) -> Path:
    """The folder with images/ and labels/. Raises DataError with where to get them."""
    return root_folder(root, "ccp", ("ccp", "CCP", "clothing-co-parsing"), (LABELS, "annotations"), _MEND)


def list_photos(folder: Path) -> tuple[dict[Split, list[Photo]], list[str]]:
    """Photos with a label map by split, and names of label maps without a photo or of another pattern.

    Raises DataError where there is none.
    """
    if not (folder / LABELS).is_dir():
        raise DataError(f"{folder}: the original .mat files, which are read once only", _MEND)
    images = {path.stem: path for path in images_in(folder / IMAGES)}
    photos: dict[Split, list[Photo]] = {split: [] for split in SPLITS}
    odd: list[str] = []
    for label in images_in(folder / LABELS):
        image = images.get(label.stem)
        if image is None or not label.stem.isdigit() or int(label.stem) > _LAST["test"]:
            odd.append(label.name)
            continue
        split = next(split for split in SPLITS if int(label.stem) <= _LAST[split])
        photos[split].append(Photo(image.stem, image, (label,), label))
    if not any(photos.values()):
        raise DataError(f"{folder}: no photo of {IMAGES}/ has a label map in {LABELS}/", _MEND)
    return photos, odd


def classes_of(options: Options) -> tuple[str, ...]:
    """The classes that `segmentation` has with these options."""
    return tuple(GROUPS) if options.classes == "grouped" else CLASSES


def load(config: DataConfig, split: Split) -> FileDataset[Photo]:
    """The photos of a split.

    Targets: `segmentation` (59 classes or 11 groups) and `tags` (multi-label: which classes have at least one pixel in
    the whole label map, before any resizing).
    """
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    check_classes(folder)
    classes = classes_of(options)
    specs = {
        "segmentation": TargetSpec("mask", classes=classes, ignore_index=_IGNORE),
        "tags": TargetSpec("multilabel", classes=_tags(options)),
    }
    listed, odd = list_photos(folder)
    photos = held_apart(listed[source_of(split)], config, split)
    reader, key = _reader(config, options), [classes, GROUPS]
    return FileDataset(config, split, specs, Files(folder, photos, reader, key, _notes(odd)))


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    options = validate_options(Options, config.options, "data.options")
    _tags(options)
    folder = folder_of(config.root)
    check_classes(folder)
    photos, odd = list_photos(folder)
    notes = _notes(odd)
    bad: list[str] = []
    for split in SPLITS:
        bad += damaged(photos[split], _reader(config, options), split)
    return bad, notes


def _notes(odd: Sequence[str]) -> list[str]:
    return [f"{len(odd)} label maps have no photo or no number up to 1004: {some(odd)}"] if odd else []


def check_classes(folder: Path) -> None:
    """Raise DataError where tags.json, if there is one, names other classes than the label maps are read with."""
    path = folder / TAGS
    if not path.is_file():
        return
    try:
        named = parse_json(path.read_text(encoding="utf-8"))["classes"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no list of classes ({error})", _MEND) from error
    if tuple(named) != CLASSES:
        other = next((n for n, m in zip(named, CLASSES, strict=False) if n != m), "a different number")
        raise DataError(f"{path}: its classes are not the 59 of Clothing Co-Parsing ({other})", _MEND)


def _tags(options: Options) -> tuple[str, ...]:
    classes = classes_of(options)
    if options.tags is None:
        return classes[1:]
    for tag in options.tags:
        if tag not in classes:
            raise ConfigError(f"data.options.tags: no class {tag!r}", f"there are {', '.join(classes)}")
    if not options.tags:
        raise ConfigError("data.options.tags is empty", "name classes, or leave it out for all of them")
    return options.tags


def group_table() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The group of each class, uint8 (59,)."""
    group = {name: number for number, names in enumerate(GROUPS.values()) for name in names}
    return np.array([group[name] for name in CLASSES], np.uint8)


def _reader(config: DataConfig, options: Options) -> Callable[[Photo], Arrays]:
    classes = classes_of(options)
    table = group_table() if options.classes == "grouped" else np.arange(len(CLASSES), dtype=np.uint8)
    columns: Sequence[int] = [classes.index(tag) for tag in _tags(options)]
    return partial(_read, image_fit(config), len(classes), table, columns)


def _read(
    fit: Fit,
    classes: int,
    table: np.ndarray[tuple[int], np.dtype[np.uint8]],
    columns: Sequence[int],
    photo: Photo,
) -> Arrays:
    image, picture = read_picture(photo.image, fit)
    labels = table[read_mask(photo.labels, None, len(CLASSES), None, picture)]
    present = np.bincount(labels.reshape(-1), minlength=classes) > 0
    return {
        "image": image,
        **own_size(picture.size),
        "segmentation": mask_at(labels, fit, None),
        "tags": present[columns].astype(np.float32),
    }
