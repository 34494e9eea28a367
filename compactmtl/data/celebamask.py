"""CelebAMask-HQ: faces with the masks of their parts and 40 binary attributes. Source: arXiv:1907.11922.

The parts are merged in the order of the authors' g_mask.py (a later part covers an earlier one), and the splits are
those of their g_partition.py: CelebA's, by the `orig_idx` of CelebA-HQ-to-CelebA-mapping.txt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

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
    part,
    root_folder,
    some,
    source_of,
)
from compactmtl.data.fit import PADDED, Fit
from compactmtl.data.formats import read_mask
from compactmtl.data.images import read_picture
from compactmtl.data.maps import check_fits, read_map
from compactmtl.data.stored import own_size
from compactmtl.data.tables import UNKNOWN_CLASS
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "faces with segmented parts and binary attributes; the user's own download"
DEFAULT_SIZE = (256, 256)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PARTS = (
    "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
CLASSES = ("background", *PARTS)
REGIONS = ("background", "skin", "hair")
SIDES = (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear"))  # change places in a mirror image
IMAGES = "CelebA-HQ-img"
MASKS = "CelebAMask-HQ-mask-anno"
MERGED = "CelebAMaskHQ-mask"  # what g_mask.py and tools/prepare_celebamask.py write
ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"

# What belongs to the face's skin region; the papers name three classes without saying what is in them.
_FACE = {
    "skin",
    "nose",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "neck",
}
_TO_REGION = np.array([1 if c in _FACE else 2 if c == "hair" else 0 for c in CLASSES], np.uint8)
_IGNORE = 255  # of images without a mask, and of the border that a random shift lays bare
_UNKNOWN = -1  # an attribute of an image without a row in the list
_VAL_FROM, _TEST_FROM = 162771, 182638
_SHARES: Mapping[Split, float] = {"val": 0.1, "test": 0.1}  # where the mapping is missing
_DEFAULT_ATTRIBUTES = ("Male", "Smiling")
_MASK_NAME = re.compile(r"(?P<number>\d{5,})_(?P<part>[a-z_]+)\.png")
_MEND = (
    "download CelebAMask-HQ.zip from https://github.com/switchablenorms/CelebAMask-HQ and unpack it there, "
    "or set data.root to the folder that holds CelebA-HQ-img/"
)


class Options(Frozen):
    """`data.options` of celebamask."""

    classes: Literal[3, 19] = Field(
        19,
        description="19 classes (background and the parts), or 3: background, skin (the face with its features, "
        "ears and neck) and hair",
    )
    attributes: tuple[str, ...] | None = Field(
        None, description="attributes to offer as targets, by their CelebA names; by default Male and Smiling"
    )


@dataclass(frozen=True)
class Face(Record):
    """One image: its merged label map, or the files of its parts, and its attributes (1 present, 0 absent, -1 unknown)."""

    merged: Path | None = None
    parts: tuple[tuple[str, Path], ...] = ()
    attributes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All faces by split, and notes on them."""

    faces: Mapping[Split, Sequence[Face]]
    notes: tuple[str, ...]


def folder_of(root: str | None) -> Path:
    """The folder with CelebA-HQ-img/. Raises DataError with where to get it."""
    return root_folder(root, "celebamask", ("CelebAMask-HQ", "CelebAMaskHQ", "celebamask"), (IMAGES,), _MEND)


def read_attributes(path: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """Names, and the values 1 or 0 of each image file. Raises DataError, naming the line, for what does not parse."""
    lines = _text(path).splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    if not names:
        raise DataError(f"{path}: no attribute names in its second line", "fetch the file again")
    table: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        file, *values = line.split()
        if len(values) != len(names) or not set(values) <= {"1", "-1", "0"}:
            raise DataError(
                f"{path}:{number}: expected an image and {len(names)} values 1 or -1, found {line[:60]!r}",
                "fetch the file again",
            )
        table[file] = tuple(int(value == "1") for value in values)
    return names, table


def read_mapping(path: Path) -> dict[int, Split]:
    """The split of each image number. Raises DataError, naming the line, for what does not parse."""
    splits: dict[int, Split] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0] == "idx":
            continue
        if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
            raise DataError(
                f"{path}:{number}: expected idx, orig_idx and orig_file, found {line[:60]!r}",
                "fetch the file again",
            )
        original = int(words[1])
        splits[int(words[0])] = (
            "test" if original >= _TEST_FROM else "val" if original >= _VAL_FROM else "train"
        )
    return splits


def merge_parts(parts: Sequence[tuple[str, Path]]) -> NDArray[np.uint8]:
    """The 19-class label map uint8 (H, W) of one face from the masks of its parts, in the order of PARTS."""
    merged: NDArray[np.uint8] | None = None
    for name, path in sorted(parts, key=lambda item: PARTS.index(item[0])):
        mask = read_map(path)
        mask = mask if mask.ndim == 2 else mask[..., 0]
        if merged is None:
            merged = np.zeros(mask.shape, np.uint8)
        if mask.shape != merged.shape:
            raise DataError(
                f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, but other parts of the face have "
                f"{merged.shape[1]}x{merged.shape[0]}",
                "fetch the file again",
            )
        merged[mask != 0] = PARTS.index(name) + 1
    if merged is None:
        raise ValueError("a face needs at least one part")
    return merged


def find_parts(folder: Path) -> tuple[dict[int, list[tuple[str, Path]]], list[str]]:
    """The masks below CelebAMask-HQ-mask-anno/ by image number, and the names that say nothing."""
    parts: dict[int, list[tuple[str, Path]]] = {}
    unparsed: list[str] = []
    for path in sorted((folder / MASKS).rglob("*.png")):
        match = _MASK_NAME.fullmatch(path.name)
        if match is None or match["part"] not in PARTS:
            unparsed.append(path.name)
        else:
            parts.setdefault(int(match["number"]), []).append((match["part"], path))
    return parts, unparsed


def list_faces(folder: Path, requested: Sequence[str] | None) -> tuple[Listing, tuple[str, ...]]:
    """Every face with a label by split, and the attributes that are offered.

    Raises DataError where nothing is labeled or `wanted` attributes have no file, ConfigError for an unknown one.
    """
    merged = {path.stem: path for path in images_in(folder / MERGED)}
    images = sorted(images_in(folder / IMAGES), key=lambda path: (len(path.stem), path.stem))
    parts: dict[int, list[tuple[str, Path]]] = {}
    unparsed: list[str] = []
    if any(image.stem not in merged for image in images):
        parts, unparsed = find_parts(folder)
    names, chosen, table = _attributes(folder, requested)
    columns = [names.index(name) for name in chosen]
    faces: list[Face] = []
    bare: list[str] = []
    unknown: list[str] = []
    for image in images:
        number = int(image.stem) if image.stem.isdigit() else -1
        own = tuple(parts.get(number, ()))
        label = merged.get(image.stem)
        lacking: tuple[str, ...] = ()
        if label is None and not own:
            bare.append(image.name)
            lacking = ("segmentation",)
        if chosen and image.name not in table:
            unknown.append(image.name)
            lacking = (*lacking, "attributes", *(name.lower() for name in chosen))
        if lacking and (not chosen or len(lacking) == len(chosen) + 2):
            continue  # nothing is known
        known = image.name in table
        values = tuple(table[image.name][column] if known else _UNKNOWN for column in columns)
        files = (label,) if label is not None else tuple(path for _, path in own)
        parts_of_face = own if label is None else ()
        faces.append(Face(image.stem, image, files, label, parts_of_face, values, unknown=lacking))
    if not faces:
        raise DataError(f"{folder}: no image of {IMAGES}/ has masks in {MASKS}/ or {MERGED}/", _MEND)
    notes = [f"{len(bare)} images have no mask{_of_these(chosen)}: {some(bare)}"] if bare else []
    if unparsed:
        notes.append(f"{len(unparsed)} files in {MASKS}/ are of no known part, such as {some(unparsed)}")
    if unknown:
        notes.append(
            f"{len(unknown)} images are not in {ATTRIBUTES}; their attributes are unknown: {some(unknown)}"
        )
    if not chosen and requested is None:
        notes.append(f"no {ATTRIBUTES}: attributes are not offered as targets")
    by_split, said = _splits(folder, faces)
    return Listing(by_split, (*notes, *said)), chosen


def _of_these(chosen: Sequence[str]) -> str:
    """What becomes of images without a mask."""
    return "; of those with attributes their segmentation is unknown" if chosen else " and are passed over"


def load(config: DataConfig, split: Split) -> FileDataset[Face]:
    """The faces of a split.

    Targets: `segmentation` (3 or 19 classes), `attributes` (the chosen ones, multi-label), and each of them as a target
    of two classes under its name in lower case, such as `male`.
    """
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    listing, chosen = list_faces(folder, options.attributes)
    records = held_apart(listing.faces[source_of(split)], config, split)
    values = [record.attributes for record in records]  # part of what a disk cache holds
    every = [face for faces in listing.faces.values() for face in faces]
    unknown = any("attributes" in face.unknown for face in every)
    reader, specs = _reader(config, options, chosen), specs_of(options, chosen, unknown=unknown)
    return FileDataset(config, split, specs, Files(folder, records, reader, values, listing.notes))


def specs_of(options: Options, chosen: Sequence[str], *, unknown: bool = False) -> dict[str, TargetSpec]:
    """The targets that these options offer; `unknown`: whether some face has no attributes."""
    classes = REGIONS if options.classes == 3 else CLASSES
    sides = SIDES if options.classes == 19 else ()
    specs = {"segmentation": TargetSpec("mask", classes=classes, ignore_index=_IGNORE, mirrored=sides)}
    if chosen:
        specs["attributes"] = TargetSpec("multilabel", classes=tuple(chosen))
    ignore = UNKNOWN_CLASS if unknown else None
    return specs | {
        name.lower(): TargetSpec("class", classes=("no", "yes"), ignore_index=ignore) for name in chosen
    }


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    options = validate_options(Options, config.options, "data.options")
    listing, chosen = list_faces(folder_of(config.root), options.attributes)
    bad: list[str] = []
    for split, faces in listing.faces.items():
        bad += damaged(faces, _reader(config, options, chosen), split)
    return bad, list(listing.notes)


def _attributes(
    folder: Path, requested: Sequence[str] | None
) -> tuple[list[str], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """(all names, those chosen, values by image file)."""
    path = folder / ATTRIBUTES
    if not path.is_file() and not requested:
        return [], (), {}
    if requested is not None and not requested:
        return [], (), {}
    names, table = read_attributes(path)
    chosen = tuple(requested if requested is not None else (n for n in _DEFAULT_ATTRIBUTES if n in names))
    for name in chosen:
        if name not in names:
            raise ConfigError(
                f"data.options.attributes: no attribute {name!r}", f"there are {', '.join(names)}"
            )
    return names, chosen, table


def _splits(folder: Path, faces: Sequence[Face]) -> tuple[dict[Split, Sequence[Face]], list[str]]:
    path = folder / MAPPING
    if not path.is_file():
        by_hash: dict[Split, Sequence[Face]] = {split: part(faces, _SHARES, split) for split in SPLITS}
        return by_hash, [
            f"no {MAPPING}: split 80/10/10 by a hash of the names, which is not the official split"
        ]
    official = read_mapping(path)
    unmapped = [face.image.name for face in faces if _number(face) not in official]
    by_split: dict[Split, Sequence[Face]] = {
        split: [face for face in faces if official.get(_number(face)) == split] for split in SPLITS
    }
    notes = (
        [f"{len(unmapped)} images are not in {MAPPING} and are passed over: {some(unmapped)}"]
        if unmapped
        else []
    )
    return by_split, notes


def _number(face: Face) -> int:
    return int(face.image.stem) if face.image.stem.isdigit() else -1


def _reader(config: DataConfig, options: Options, chosen: Sequence[str]) -> Callable[[Face], Arrays]:
    return partial(_read, image_fit(config), options.classes, tuple(chosen))


def _read(fit: Fit, classes: int, chosen: Sequence[str], face: Face) -> Arrays:
    image, picture = read_picture(face.image, fit)
    arrays: Arrays = {"image": image, **own_size(picture.size)}
    if "segmentation" in face.unknown:
        arrays["segmentation"] = np.full(fit.size, _IGNORE, np.uint8)
    else:
        labels = (
            merge_parts(face.parts) if face.merged is None else read_mask(face.merged, None, len(CLASSES))
        )
        if classes == 3:
            labels = _TO_REGION[labels]
        # The official masks have half the side of their images.
        check_fits(face.merged or face.parts[0][1], labels.shape, picture, scaled=True)
        arrays["segmentation"] = fit.map(labels, PADDED, picture.size)
    if chosen:
        arrays["attributes"] = np.array(face.attributes, np.float32)
    for name, value in zip(chosen, face.attributes, strict=True):
        arrays[name.lower()] = np.array(UNKNOWN_CLASS if value == _UNKNOWN else value, np.int64)
    return arrays


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", _MEND) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", "fetch the file again") from error
