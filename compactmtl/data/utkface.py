"""The `utkface` data set: aligned faces with age, gender and ethnicity in their file names.

Source: Zhang, Song and Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", arXiv:1702.08423.
A name is [age]_[gender]_[race]_[date and time].jpg, as in 26_0_2_20170104165550.jpg.chip.jpg.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from compactmtl.artifacts.files import expanded
from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays, content_key, hold_out, user_cache
from compactmtl.data.files import numbers_of, size_and_time, source_of
from compactmtl.data.images import read_image, read_picture
from compactmtl.data.pixels import IMAGE_SUFFIXES
from compactmtl.data.stored import StoredDataset, own_size
from compactmtl.errors import DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "faces with age (years), gender and ethnicity; the user's own download"
DEFAULT_SIZE = (64, 64)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
GENDERS = ("male", "female")
ETHNICITIES = ("White", "Black", "Asian", "Indian", "Others")
OLDEST = 116
# Seven classes, as arXiv:2409.16651 has; the paper does not say where they end. These follow the stages of a life:
# 1-2, 3-9, 10-20, 21-27, 28-45, 46-65 and 66-116.
AGE_BINS = (2, 9, 20, 27, 45, 65)

_NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<race>[0-4])_\d+(?:\.[A-Za-z]+)*")
_FLAT_VAL_SHARE = 0.2  # the paper's users split 80/20
_MEND = (
    "download the aligned and cropped faces from https://susanqq.github.io/UTKFace and unpack them there, "
    "or set data.root to the folder that holds UTKFace/"
)


class Options(Frozen):
    """Options of utkface."""

    age_bins: tuple[int, ...] = Field(
        AGE_BINS, description="last age in years of each class of age_bin but the oldest, in ascending order"
    )

    @field_validator("age_bins")
    @classmethod
    def _ascending(cls, bounds: tuple[int, ...]) -> tuple[int, ...]:
        if not bounds or list(bounds) != sorted({*bounds}) or not 1 <= bounds[0] <= bounds[-1] < OLDEST:
            raise ValueError(f"needs one or more ascending ages from 1 to {OLDEST - 1}, found {list(bounds)}")
        return bounds


@dataclass(frozen=True)
class Face:
    """One file and what its name says."""

    path: Path
    age: int
    gender: int
    ethnicity: int


@dataclass(frozen=True)
class Listing:
    """The faces of one split, sorted by name, and the names that say nothing."""

    faces: tuple[Face, ...]
    unparsed: tuple[str, ...]


def parse_name(path: Path) -> Face | None:
    """What the file's name says, or None where it does not follow the pattern or age is not in 1 to 116."""
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["age"]) <= OLDEST:
        return None
    return Face(path, int(match["age"]), int(match["gender"]), int(match["race"]))


def age_classes(bounds: Sequence[int]) -> tuple[str, ...]:
    """Names of the classes that end at these ages and of the oldest, such as "3-9"."""
    pairs = zip([1, *(bound + 1 for bound in bounds)], [*bounds, OLDEST], strict=True)
    return tuple(str(low) if low == high else f"{low}-{high}" for low, high in pairs)


def folder_of(root: str | None) -> Path:
    """The folder with the splits or faces: `<root>/UTKFace` where there is one, else `<root>`.

    Raises DataError with where to get the data if it is missing.
    """
    if root is None:
        raise DataError("data.root: utkface needs the folder of its files", f"give root=FOLDER; {_MEND}")
    top = expanded(root)
    if not top.is_dir():
        what = "is a file, not a folder" if top.exists() else "no such folder"
        raise DataError(f"{top}: {what} (data.root of utkface)", _MEND)
    return top / "UTKFace" if (top / "UTKFace").is_dir() else top


def list_split(root: str | None, split: Split, holdout: float = 0.0) -> Listing:
    """The faces of a split: a folder of its name, or, where the folder is flat, a fixed 80 % train and 20 % val.

    Raises DataError for a missing folder or split, or one without a face.
    """
    folder = folder_of(root)
    source = source_of(split)
    flat = not any((folder / name).is_dir() for name in SPLITS)
    here = folder if flat else folder / source
    if not here.is_dir():
        splits = ", ".join(name for name in SPLITS if (folder / name).is_dir())
        raise DataError(
            f"{here}: no such folder; {folder} has {splits}",
            f"put the {source} images there, or pick another split",
        )
    listing = _read_folder(here)
    faces = listing.faces
    if not faces:
        names = f"{len(listing.unparsed)} images, none with a name like 26_0_2_20170104165550.jpg"
        raise DataError(f"{here}: no faces ({names if listing.unparsed else 'no images'})", _MEND)
    if flat:
        if source == "test":
            raise DataError(
                f"{here}: a flat folder has no test split", "use val, or make folders train/, val/ and test/"
            )
        parts = hold_out([face.path.name for face in faces], _FLAT_VAL_SHARE)
        faces = tuple(faces[i] for i in parts[source == "val"])
    faces = tuple(faces[i] for i in numbers_of([face.path.name for face in faces], holdout, split))
    return Listing(faces, listing.unparsed)


class UTKFace(StoredDataset):
    """Faces of one split.

    Targets: `age` (years, 1 to 116), `age_bin` (7 classes of age, or those of the option `age_bins`), `gender`
    (2 classes) and `ethnicity` (5 classes).
    """

    def __init__(self, config: DataConfig, split: Split) -> None:
        self._age_bins = validate_options(Options, config.options, "data.options").age_bins
        listing = list_split(config.root, split, config.holdout)
        self._faces, self._fit = listing.faces, image_fit(config)
        if not self._faces:
            raise DataError(f"{config.root}: split {split} holds no face", "raise data.holdout or add images")
        self.unparsed = listing.unparsed
        self.notes = _unparsed_notes(listing.unparsed)
        training = list_split(config.root, "train", config.holdout).faces if split != "train" else self._faces
        ages = np.array([face.age for face in training], np.float64)
        specs = {
            "age": TargetSpec(
                "scalar", unit="years", mean=float(ages.mean()), std=float(max(ages.std(), 1e-3))
            ),
            "age_bin": TargetSpec("class", classes=age_classes(self._age_bins)),
            "gender": TargetSpec("class", classes=GENDERS),
            "ethnicity": TargetSpec("class", classes=ETHNICITIES),
        }

        def cached() -> Path:
            files = [(face.path.name, *size_and_time(face.path)) for face in self._faces]
            folder = str(folder_of(config.root).resolve())
            key = content_key(folder, files, repr(self._fit), list(specs), self._age_bins)
            return user_cache() / "utkface" / key

        super().__init__(config, split, specs, len(self._faces), cached)

    def identifier(self, index: int) -> str:
        """The file's path."""
        return str(self._faces[index].path)

    def _make(self, index: int) -> Arrays:
        face = self._faces[index]
        image, picture = read_picture(face.path, self._fit)
        return {
            "image": image,
            **own_size(picture.size),
            "age": np.array(face.age, np.float32),
            "age_bin": np.array(bisect_left(self._age_bins, face.age)),
            "gender": np.array(face.gender),
            "ethnicity": np.array(face.ethnicity),
        }


def load(config: DataConfig, split: Split) -> UTKFace:
    """The faces of a split; with cache memory or disk every image is decoded here and a damaged one found."""
    return UTKFace(config, split)


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, such as damaged images, and what is passed over: (problems, notes)."""
    validate_options(Options, config.options, "data.options")
    bad: list[str] = []
    notes: list[str] = []
    folder = folder_of(config.root)
    flat = not any((folder / name).is_dir() for name in SPLITS)
    if flat:
        notes.append(f"{folder} has no train/ and val/: split 80/20 by a hash of the names")
    unparsed: dict[str, None] = {}
    first_place: dict[bytes, tuple[Split, Path]] = {}
    leaks: list[tuple[Path, Path]] = []
    for split in SPLITS:
        if split == "test" and (flat or not (folder / split).is_dir()):
            continue  # nothing in training needs it
        try:
            listing = list_split(config.root, split)
        except DataError as error:
            bad.append(error.message)
            continue
        unparsed |= dict.fromkeys(listing.unparsed)
        damaged: list[str] = []
        for face in listing.faces:
            try:
                read_image(face.path)
            except DataError as error:
                damaged.append(error.message)
                continue
            first = first_place.setdefault(
                hashlib.sha256(face.path.read_bytes()).digest(), (split, face.path)
            )
            if first[0] != split:
                leaks.append((face.path, first[1]))
        bad += damaged[:10]
        if len(damaged) > 10:
            bad.append(f"... and {len(damaged) - 10} more damaged images in {split}")
    if leaks:
        notes.append(
            f"{len(leaks)} images are in two splits, byte for byte, such as {leaks[0][0]} and {leaks[0][1]}: "
            "metrics on the later split flatter"
        )
    return bad, [*notes, *_unparsed_notes(list(unparsed))]


def _unparsed_notes(names: Sequence[str]) -> tuple[str, ...]:
    examples = ", ".join(repr(name) for name in names[:3])
    return (f"{len(names)} names do not parse and are passed over, such as {examples}",) if names else ()


def _read_folder(folder: Path) -> Listing:
    """All faces below a folder, hidden ones apart."""
    faces: list[Face] = []
    unparsed: list[str] = []
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    for path in files:
        face = parse_name(path)
        if face is None:
            unparsed.append(path.name)
        else:
            faces.append(face)
    return Listing(tuple(faces), tuple(unparsed))
