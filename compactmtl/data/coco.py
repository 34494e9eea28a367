"""The `coco` data set: COCO 2017 with instances, classes by pixel, and COCO-Stuff's maps where they are present.

Sources: arXiv:1405.0312 (COCO), arXiv:1612.03716 (COCO-Stuff). The layout is that of the official archives, unpacked
side by side: annotations/instances_{train,val}2017.json, train2017/, val2017/, and stuffthingmaps/{train,val}2017/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.config import validate_options
from compactmtl.config.recipe import DataConfig, Frozen
from compactmtl.data.base import Sample, Split, image_fit
from compactmtl.data.cache import Arrays
from compactmtl.data.coco_annotations import Annotations, Picture, box_of, draw, read_annotations
from compactmtl.data.coco_stuff import STUFF, stuff_table
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
    without_labels,
)
from compactmtl.data.fit import Fit
from compactmtl.data.images import read_picture
from compactmtl.data.maps import nearest, relabel, stored_map
from compactmtl.data.pixels import ImageInfo
from compactmtl.data.stored import own_size
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetSpec
from compactmtl.tasks.instance_scoring import InstanceReference, mask_module, to_rle
from compactmtl.tasks.placement import Placement

DESCRIPTION = (
    "COCO 2017: instances and classes of 80 kinds of things, and stuff maps; the user's own download"
)
DEFAULT_SIZE = (256, 256)
DEFAULT_ROOT = "data"
SPLITS: tuple[Split, ...] = ("train", "val")  # the test images have no public annotations

MAPS = "stuffthingmaps"
_IGNORE = 255
_MEND = (
    "download train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org/#download and "
    "unpack them there, or set data.root to the folder that holds annotations/"
)
_MEND_STUFF = (
    "unpack stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff there as "
    f"{MAPS}/train2017 and {MAPS}/val2017, or leave out data.options.stuff"
)


class Options(Frozen):
    """`data.options` of coco."""

    classes: tuple[str, ...] | None = Field(
        None, description="things to look for by name, such as person and dog; all by default"
    )
    stuff: bool = Field(
        False, description="classes of the target `segmentation` include COCO-Stuff's 91 of stuff"
    )
    empty: bool = Field(False, description="keep training images in which none of the classes is")
    train_on: Literal["train", "val"] = Field(
        "train",
        description="where split train comes from; val shows whether a model can memorize what it is scored on",
    )
    repeat: Annotated[int, Field(ge=1)] = Field(
        1, description="times that each training image comes in an epoch, for a set of few images"
    )


@dataclass(frozen=True)
class CocoRecord(Record):
    """One image; `annotations` are those of the chosen classes, each with its class index as `label`."""

    number: int = 0
    height: int = 0
    width: int = 0
    annotations: tuple[Mapping[str, Any], ...] = ()
    stuff: Path | None = None


class CocoDataset(FileDataset[CocoRecord]):
    """Images of one split with the targets `instances` and `segmentation`; `repeat` says how often each comes."""

    repeat = 1

    def __len__(self) -> int:
        return self.repeat * len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index % len(self._records)]
        sample = super().__getitem__(index % len(self._records))
        place = Placement.of(self._resize, (record.height, record.width), self._size)
        reference = InstanceReference(record.height, record.width, record.annotations, place)
        return {**sample, "references": {"instances": reference}}

    def labeled(self, target: str) -> NDArray[np.bool_]:
        """As of any data set of files, as often as each image comes."""
        return np.tile(super().labeled(target), self.repeat)

    def identifier(self, index: int) -> str:
        return super().identifier(index % len(self._records))

    def boxes(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes (N, 4), left, top, right, bottom in pixels of the network's input, and class indices (N,); no crowds.

        A crop cuts boxes off at the picture's edges; one that lies outside has no area.
        """
        record = self._records[index % len(self._records)]
        place = Placement.of(self._resize, (record.height, record.width), self._size)
        scale = np.array([place.scaled[1] / record.width, place.scaled[0] / record.height] * 2)
        corner = np.array([place.left, place.top] * 2)
        kept = [one for one in record.annotations if not one["iscrowd"]]
        corners = [box_of(one["segmentation"], (record.height, record.width)) for one in kept]
        boxes = np.array(corners, np.float64).reshape(-1, 4) * scale + corner
        boxes = boxes.clip(0, [self._size[1], self._size[0]] * 2)
        return boxes.astype(np.float32), np.array([one["label"] for one in kept], np.int64)


def folder_of(root: str | None) -> Path:
    """The folder with annotations/. Raises DataError with where to get it."""
    marks = [f"annotations/instances_{split}2017.json" for split in SPLITS]
    return root_folder(root, "coco", ("coco", "COCO", "coco2017"), marks, _MEND)


def load(config: DataConfig, split: Split) -> CocoDataset:
    """The images of a split.

    Targets: `instances`, and `segmentation`, the class of each pixel: background and the things, or the things and stuff.
    Training leaves out images without an instance, unless `empty`.
    """
    mask_module()  # says what is missing before anything is read
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    source = _source(split, options)
    annotations = read_annotations(annotation_file(folder, source))
    things = chosen_classes(annotations, options)
    records = list_records(folder, source, annotations, things, options)
    if source_of(split) == "train" and not options.empty:
        records = [record for record in records if any(not one["iscrowd"] for one in record.annotations)]
    records = held_apart(records, config, split)
    notes = without_labels(records, ("segmentation",), f"the images of {source}")
    files = Files(folder, records, _reader(config, things, options), _key(folder, source), notes)
    dataset = CocoDataset(config, split, specs_of(things, options), files)
    if split == "train":
        dataset.repeat = options.repeat
    return dataset


def specs_of(things: Sequence[str], options: Options) -> dict[str, TargetSpec]:
    """The targets that these options offer."""
    classes = (*things, *STUFF) if options.stuff else ("background", *things)
    return {
        "instances": TargetSpec("instances", classes=tuple(things)),
        "segmentation": TargetSpec("mask", classes=classes, ignore_index=_IGNORE),
    }


def chosen_classes(annotations: Annotations, options: Options) -> tuple[str, ...]:
    """Names of the things in the file's order. Raises ConfigError for an unknown one."""
    names = tuple(annotations.categories[number] for number in sorted(annotations.categories))
    if options.classes is None:
        return names
    if unknown := [name for name in options.classes if name not in names]:
        raise ConfigError(f"data.options.classes: no class {unknown[0]!r}", f"there are {', '.join(names)}")
    if not options.classes:
        raise ConfigError("data.options.classes is empty", "name a class, or leave it out for all")
    return tuple(name for name in names if name in options.classes)


def list_records(
    folder: Path, source: str, annotations: Annotations, things: Sequence[str], options: Options
) -> list[CocoRecord]:
    """All images of the annotation file. Raises DataError where the folder of images or of stuff maps is missing."""
    images, maps = folder / f"{source}2017", folder / MAPS / f"{source}2017"
    if not images.is_dir():
        raise DataError(f"{images}: no such folder", _MEND)
    if options.stuff and not maps.is_dir():
        raise DataError(f"{maps}: no such folder", _MEND_STUFF)
    index = {number: things.index(name) for number, name in annotations.categories.items() if name in things}
    records: list[CocoRecord] = []
    for picture in annotations.pictures:
        stuff = maps / f"{Path(picture.file).stem}.png" if options.stuff else None
        lacking = stuff is not None and not stuff.is_file()
        path = images / Path(picture.file).name  # the name alone: a path in the file leads nowhere else
        records.append(
            CocoRecord(
                name=path.name,
                image=path,
                files=() if stuff is None else (stuff,),
                number=picture.number,
                height=picture.height,
                width=picture.width,
                annotations=_labeled(picture, index),
                stuff=stuff,
                unknown=("segmentation",) if lacking else (),
            )
        )
    return records


def problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What would stop training, and what is passed over: (problems, notes)."""
    options = validate_options(Options, config.options, "data.options")
    folder = folder_of(config.root)
    bad: list[str] = []
    notes: list[str] = []
    for source in dict.fromkeys(_source(split, options) for split in SPLITS):
        try:
            annotations = read_annotations(annotation_file(folder, source))
            things = chosen_classes(annotations, options)
            records = list_records(folder, source, annotations, things, options)
        except DataError as error:
            bad.append(error.message)
            continue
        bad += damaged(records, _checker(config, things, options), source)
        notes += without_labels(records, ("segmentation",), f"the images of {source}")
        listed = {record.image.name for record in records}
        extra = [path.name for path in images_in(folder / f"{source}2017") if path.name not in listed]
        if extra:
            notes.append(f"{len(extra)} images of {source}2017/ are in no annotation file: {some(extra)}")
        bare = [record.name for record in records if not record.annotations]
        if bare:
            notes.append(f"{len(bare)} images of {source} show none of the classes: {some(bare)}")
        crowds = sum(one["iscrowd"] for record in records for one in record.annotations)
        hollow = sum(not one["segmentation"] for p in annotations.pictures for one in p.annotations)
        if hollow:
            notes.append(f"{hollow} annotations of {source} have an empty segmentation and are passed over")
        notes.append(
            f"{source}: {sum(len(record.annotations) for record in records) - crowds} instances, {crowds} crowds"
        )
    return bad, notes


def _source(split: Split, options: Options) -> str:
    return options.train_on if source_of(split) == "train" else "val"


def annotation_file(folder: Path, source: str) -> Path:
    """The file of the instances of `train` or `val`."""
    return folder / "annotations" / f"instances_{source}2017.json"


def _labeled(picture: Picture, index: Mapping[int, int]) -> tuple[Mapping[str, Any], ...]:
    """The annotations of the chosen classes, with class indices."""
    return tuple(
        {**one, "label": index[one["category_id"]]}
        for one in picture.annotations
        if one["category_id"] in index and one["segmentation"]
    )


def _reader(config: DataConfig, things: Sequence[str], options: Options) -> Callable[[CocoRecord], Arrays]:
    return partial(_read, image_fit(config), stuff_table(things))


def _read(fit: Fit, table: NDArray[np.uint8], record: CocoRecord) -> Arrays:
    # COCO's annotations are of the pixels as they are stored, whatever an EXIF orientation says.
    image, picture = read_picture(record.image, fit, upright=False)
    there = (record.height, record.width)
    if picture.size != there:
        raise DataError(
            f"{record.image}: {picture.size[1]}x{picture.size[0]} pixels, but its annotations are of "
            f"{record.width}x{record.height}",
            "fetch the image again; a resized or turned one does not fit its annotations",
        )
    try:
        place = fit.placement(there)
        numbers, labels = draw(record.annotations, there, place.scaled)
    except DataError as error:
        raise DataError(f"{record.image}: {error.message}", error.hint) from error
    if "segmentation" in record.unknown:
        semantic = np.full(place.scaled, _IGNORE, np.uint8)
    elif record.stuff is None:
        semantic = np.where(numbers != 0, labels + 1, 0).astype(np.uint8)
    else:
        stored = stored_map(record.stuff, ImageInfo(record.image, there)).values
        semantic = relabel(nearest(stored, place.scaled), table, record.stuff)
    return {
        "image": image,
        **own_size(there),
        # Padding is neither an instance nor a place without one.
        "instances": place.put(np.stack([numbers, labels]), -1),
        "segmentation": place.put(semantic, _IGNORE),
    }


def _checker(config: DataConfig, things: Sequence[str], options: Options) -> Callable[[CocoRecord], Arrays]:
    """As `_reader`, and decodes every segmentation at the size that the annotation file says."""
    read = _reader(config, things, options)

    def check(record: CocoRecord) -> Arrays:
        arrays = read(record)
        for one in record.annotations:
            to_rle(one["segmentation"], (record.height, record.width))
        return arrays

    return check


def _key(folder: Path, source: str) -> tuple[int, int]:
    """What decides the targets beside the image files: the annotation file."""
    status = annotation_file(folder, source).stat()
    return status.st_size, status.st_mtime_ns
