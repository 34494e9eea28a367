"""The `cityscapes` data set: street scenes with segmentation, disparity and parts of people and vehicles.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", arXiv:1604.01685.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.artifacts.files import parse_json
from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.cityscapes_labels import (
    CLASS_NAMES,
    IGNORE,
    PARTS,
    label_table,
    parts_of,
    without_unlabeled,
)
from compactmtl.data.files import (
    FileDataset,
    Files,
    Record,
    damaged,
    held_apart,
    root_folder,
    some,
    source_of,
    without_labels,
)
from compactmtl.data.fit import Fit
from compactmtl.data.images import read_picture
from compactmtl.data.maps import check_npy, check_png, nearest, relabel, stored_map
from compactmtl.data.npy import npy_info, npy_mask, npy_picture, npy_positive, numbered
from compactmtl.data.pixels import ImageInfo, read_picture_size
from compactmtl.data.stored import own_size
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec

DESCRIPTION = "street scenes with segmentation, disparity and part segmentation; the user's own download"
DEFAULT_SIZE = (128, 256)  # of MTAN and LibMTL
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val")  # the labels of test are not published

_SITE = "https://www.cityscapes-dataset.com/downloads"
_MEND = (
    f"download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from {_SITE} (an account is needed) and unpack "
    "them in one folder (tools/prepare_cityscapes.py does), or take the .npy files of MTAN from "
    "https://github.com/lorenmt/mtan, and set data.root to their folder"
)
_LOOKED_AT = 12  # images that a check decodes, and that a statistic is taken from
_IMAGE = "_leftImg8bit.png"
# Beside images and labels: folder, ending of its files, and the archive that holds it.
_FOLDERS = {
    "disparity": ("disparity", "_disparity.png", "disparity_trainvaltest.zip"),
    "camera": ("camera", "_camera.json", "camera_trainvaltest.zip"),
    "parts": ("gtFinePanopticParts", "_gtFinePanopticParts.tif", "gtFinePanopticParts_trainval.zip"),
}


class Options(Frozen):
    """`data.options` of cityscapes."""

    classes: Literal[7, 19] = Field(
        7, description="19, those that the benchmark evaluates, or 7 groups of them"
    )
    disparity: Literal["px", "1/m"] = Field(
        "px",
        description="unit: px, pixels of the 2048 wide picture, or 1/m, inverse depth by each camera's calibration",
    )


def folder_of(root: str | None) -> Path:
    """The folder with leftImg8bit/, or MTAN's train/image/. Raises DataError with where to get them."""
    return root_folder(
        root, "cityscapes", ("cityscapes", "Cityscapes"), ("leftImg8bit", "train/image", "val/image"), _MEND
    )


def load(config: DataConfig, split: Split) -> FileDataset[Record]:
    """The frames of a split: `segmentation`, and `disparity` and `parts` where their folders are."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    layout = _open(folder, options)
    records = held_apart(layout.records(source_of(split)), config, split)
    specs = {"segmentation": TargetSpec("mask", classes=CLASS_NAMES[options.classes], ignore_index=IGNORE)}
    if "disparity" in layout.offers:
        mean, std = _statistics(layout)
        specs["disparity"] = TargetSpec("disparity", unit=layout.unit, mean=mean, std=std)
    if "parts" in layout.offers:
        # Every pixel has a part or is background; the index is for the border that a random shift lays bare.
        specs["parts"] = TargetSpec("mask", classes=PARTS, ignore_index=IGNORE)
    reader, notes = _reader(layout, image_fit(config)), layout.passed_over(source_of(split))
    return FileDataset(config, split, specs, Files(folder, records, reader, [layout.offers, options], notes))


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is missing or worth knowing: (problems, notes).

    Every file is looked at, and a dozen frames of each split are decoded.
    """
    options = validate_options(Options, config.options, "data.options")
    layout = _open(folder_of(config.root), options)
    bad: list[str] = []
    notes: list[str] = []
    for split in SPLITS:
        try:
            records = layout.records(split)
        except DataError as error:
            bad.append(error.message)
            continue
        notes += layout.passed_over(split)
        faults = [
            fault
            for r in records
            for path in (r.image, *r.files)
            if path == r.image or path.is_file()  # a label that is not there is unknown
            if (fault := layout.fault(path)) is not None
        ]
        bad += faults[:10] + ([f"... and {len(faults) - 10} more in {split}"] if len(faults) > 10 else [])
        if not faults:
            bad += damaged(_some(records), _reader(layout, image_fit(config)), split)
    return bad, notes + layout.missing()


class OfficialTree:
    """leftImg8bit/, gtFine/ and, where they are, disparity/, camera/ and gtFinePanopticParts/, by split and city."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.unit = options.disparity
        self._table = label_table(options.classes)
        there = {name for name, (part, _, _) in _FOLDERS.items() if (folder / part).is_dir()}
        self.offers = tuple(name for name in ("disparity", "parts") if name in there)
        self._metric = options.disparity == "1/m" and "disparity" in self.offers
        if self._metric and "camera" not in there:
            raise DataError(
                f"{folder / 'camera'}: no such folder; inverse depth in 1/m needs each camera's calibration",
                f"fetch camera_trainvaltest.zip from {_SITE}, or set data.options.disparity to px",
            )

    def records(self, split: Split) -> list[Record]:
        """Frames that have a label of some target, in the order of their names. Raises DataError where there are none."""
        frames = [r for r in self._frames(split) if len(r.unknown) <= len(self.offers)]
        if not frames:
            raise DataError(
                f"{self.folder}: no frame of {split} with labels, such as gtFine/{split}/<city>/*_gtFine_labelIds.png",
                _MEND,
            )
        return frames

    def passed_over(self, split: Split) -> list[str]:
        """Notes on frames without labels: of all targets, or of some."""
        frames = self._frames(split)
        without = [r.name for r in frames if "segmentation" in r.unknown]
        said = [f"{len(without)} frames of {split} have no labels: {some(without)}"] if without else []
        return said + without_labels(frames, self.offers, f"the frames of {split}")

    def missing(self) -> list[str]:
        """Notes on targets that the folder does not offer."""
        return [
            f"no {name}: {self.folder / _FOLDERS[name][0]} is not there ({_FOLDERS[name][2]} of {_SITE})"
            for name in ("disparity", "parts")
            if name not in self.offers
        ]

    def fault(self, path: Path) -> str | None:
        """What a quick look says of a file."""
        if path.suffix == ".png":
            return check_png(path)
        return None if path.is_file() else f"{path}: no such file"

    def image(self, record: Record, fit: Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        """uint8 (C, H, W), and what maps of it must fit."""
        return read_picture(record.image, fit)

    def info(self, record: Record) -> ImageInfo:
        """What maps of an image must fit, by its header alone."""
        return read_picture_size(record.image)

    def segmentation(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.uint8]:
        """Class indices (H, W)."""
        path = record.files[0]
        stored = _one_number(path, of)
        place = fit.placement((stored.shape[0], stored.shape[1]))
        labels = relabel(without_unlabeled(nearest(stored, place.scaled)), self._table, path)
        return place.put(labels, IGNORE)

    def disparity(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.float32]:
        """(1, H, W) in `unit`: the files hold 256 d + 1, and 0 where unknown."""
        path = record.files[1]
        stored = _one_number(path, of)
        if stored.dtype.itemsize < 2:
            raise DataError(f"{path}: expected 16 bits a pixel, found 8", "fetch the file again")
        pixels = np.maximum(fit.map(stored).astype(np.float32) - 1, 0) / 256
        if self._metric:
            pixels /= _focal_times_baseline(record.files[2])
        return pixels.astype(np.float32)[None]

    def parts(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.uint8]:
        """Part classes (H, W)."""
        stored = _one_number(record.files[-1], of)
        place = fit.placement((stored.shape[0], stored.shape[1]))
        return place.put(parts_of(nearest(stored, place.scaled)), IGNORE)

    def _frames(self, split: Split) -> list[Record]:
        folders = [name for name in _FOLDERS if name in self.offers or (name == "camera" and self._metric)]
        frames = []
        for image in sorted((self.folder / "leftImg8bit" / split).glob(f"*/*{_IMAGE}")):
            city, name = image.parent.name, image.name.removesuffix(_IMAGE)
            labels = self.folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            others = [
                self.folder / part / split / city / f"{name}{suffix}"
                for part, suffix, _ in (_FOLDERS[one] for one in folders)
            ]
            frames.append(
                Record(name, image, (labels, *others), unknown=self._unknown(folders, labels, others))
            )
        return frames

    def _unknown(self, folders: Sequence[str], labels: Path, others: Sequence[Path]) -> tuple[str, ...]:
        """The targets of which a frame has no file; of disparity in 1/m also no calibration."""
        there = {name for name, path in zip(folders, others, strict=True) if path.is_file()}
        if self._metric and "camera" not in there:
            there.discard("disparity")
        there |= {"segmentation"} if labels.is_file() else set()
        return tuple(name for name in ("segmentation", *self.offers) if name not in there)


class NpyTree:
    """MTAN's and LibMTL's {train,val}/{image,label_7,label_19,depth}/0.npy; `depth` holds inverse depth."""

    unit = ""  # scaled by those who made the files

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self._classes = options.classes
        self._labels = f"label_{options.classes}"
        if options.disparity != "px":
            raise ConfigError(
                f"data.options.disparity: {folder} holds inverse depth in a unit of its own", "leave it out"
            )
        if (folder / "train").is_dir() and not (folder / "train" / self._labels).is_dir():
            label_folders = ", ".join(sorted(path.name for path in (folder / "train").glob("label*")))
            raise ConfigError(
                f"data.options.classes: {folder / 'train'} has no {self._labels} (found: {label_folders or 'no labels'})",
                "set it to the classes that are there",
            )
        self.offers = ("disparity",) if (folder / "train" / "depth").is_dir() else ()

    def records(self, split: Split) -> list[Record]:
        """The numbered files, in order. Raises DataError where there are none."""
        top = self.folder / split
        images = numbered(top / "image")
        if not images:
            raise DataError(f"{top / 'image'}: no .npy files", _MEND)
        parts = [self._labels, *(["depth"] if self.offers else [])]
        frames = []
        for image in images:
            files = tuple(top / part / image.name for part in parts)
            targets = ("segmentation", *self.offers)
            unknown = tuple(name for name, path in zip(targets, files, strict=True) if not path.is_file())
            if len(unknown) < len(targets):
                frames.append(Record(image.stem, image, files, unknown=unknown))
        if not frames:
            raise DataError(f"{top / self._labels}: no file with the name of an image", _MEND)
        return frames

    def passed_over(self, split: Split) -> list[str]:
        """Notes on frames without labels of some target."""
        return without_labels(self.records(split), ("segmentation", *self.offers), f"the frames of {split}")

    def missing(self) -> list[str]:
        """Notes on targets that the folder does not offer."""
        return [] if self.offers else [f"no disparity: {self.folder / 'train' / 'depth'} is not there"]

    def fault(self, path: Path) -> str | None:
        """What a quick look says of a file."""
        return check_npy(path)

    def image(self, record: Record, fit: Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
        """uint8 (C, H, W), and what maps of it must fit."""
        return npy_picture(record.image, fit)

    def info(self, record: Record) -> ImageInfo:
        """What maps of an image must fit; its values are not read."""
        return npy_info(record.image)

    def segmentation(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.uint8]:
        """Class indices (H, W)."""
        return npy_mask(record.files[0], fit, self._classes, IGNORE)

    def disparity(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.float32]:
        """(1, H, W) as stored; 0 where unknown."""
        return npy_positive(record.files[1], fit)

    def parts(self, record: Record, fit: Fit, of: ImageInfo) -> NDArray[np.uint8]:
        """Never offered."""
        raise DataError(f"{record.image}: has no parts", "use the official files")


Layout = OfficialTree | NpyTree


def _open(folder: Path, options: Options) -> Layout:
    return (OfficialTree if (folder / "leftImg8bit").is_dir() else NpyTree)(folder, options)


def _reader(layout: Layout, fit: Fit) -> Callable[[Record], Arrays]:
    return partial(_read, layout, fit)


def _read(layout: Layout, fit: Fit, record: Record) -> Arrays:
    image, of = layout.image(record, fit)  # whose header is read once, for all maps
    arrays: Arrays = {
        "image": image,
        **own_size(of.size),
    }
    readers: dict[str, Callable[[Record, Fit, ImageInfo], NDArray[Any]]] = {
        "segmentation": layout.segmentation,
        "disparity": layout.disparity,
        "parts": layout.parts,
    }
    for name in ("segmentation", *layout.offers):
        if name not in record.unknown:
            arrays[name] = readers[name](record, fit, of)
        elif name == "disparity":
            arrays[name] = np.zeros((1, *fit.size), np.float32)
        else:
            arrays[name] = np.full(fit.size, IGNORE, np.uint8)
    return arrays


def _statistics(layout: Layout) -> tuple[float, float]:
    """Mean and standard deviation of disparity over some training frames, for a head that starts at the mean."""
    records = [record for record in layout.records("train") if "disparity" not in record.unknown]
    maps = [layout.disparity(record, Fit((64, 128)), layout.info(record)) for record in _some(records)]
    known = np.concatenate([np.zeros(0, np.float32), *(one[one > 0] for one in maps)])
    if not known.size:
        raise DataError(f"{layout.folder}: disparity is unknown everywhere", _MEND)
    return float(known.mean()), float(known.std()) or float(known.mean())


def _focal_times_baseline(path: Path) -> float:
    """Of a calibration file, in pixels times metres: disparity in pixels over it is inverse depth."""
    try:
        camera = parse_json(path.read_text("utf-8"))
        product = float(camera["intrinsic"]["fx"]) * float(camera["extrinsic"]["baseline"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not a camera's calibration ({error!r})", "fetch camera_trainvaltest.zip again"
        ) from error
    if not product > 0:
        raise DataError(f"{path}: fx times baseline is {product}", "fetch camera_trainvaltest.zip again")
    return product


def _one_number(path: Path, of: ImageInfo) -> NDArray[np.integer]:
    """A map of one number a pixel that fits its image. Raises DataError, naming the file."""
    values = stored_map(path, of).values
    if values.ndim != 2:
        raise DataError(
            f"{path}: expected one number a pixel, found {values.shape[-1]} channels",
            "the colored pictures are for looking at; fetch the ids",
        )
    return values


def _some(records: Sequence[Record]) -> list[Record]:
    """Up to a dozen, spread evenly."""
    if not records:
        return []
    return [records[i] for i in np.unique(np.linspace(0, len(records) - 1, _LOOKED_AT).astype(int))]
