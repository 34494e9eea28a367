"""COCO's annotation files, and their instances drawn as maps of the network's size.

Source: arXiv:1405.0312 and https://cocodataset.org/#format-data. `info` and `licenses` are never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.files import parse_json
from compactmtl.data.maps import nearest
from compactmtl.errors import DataError
from compactmtl.tasks.instance_scoring import mask_module, to_rle

FETCH = "fetch annotations_trainval2017.zip from https://cocodataset.org/#download again"


@dataclass(frozen=True)
class Picture:
    """One image of an annotation file, with its annotations as they stand there."""

    number: int
    file: str
    height: int
    width: int
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Annotations:
    """An annotation file: its images, sorted by number, and the names of its categories by number."""

    pictures: tuple[Picture, ...]
    categories: Mapping[int, str]


def read_annotations(path: Path) -> Annotations:
    """The content of instances_*.json; kept until the file changes.

    Raises DataError, naming the file and the key, where it is missing or not of this form.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: no such file", FETCH) from error
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)  # train and val; parsing the training file takes many seconds
def _read(path: Path, _time: int, _size: int) -> Annotations:
    try:
        content = parse_json(path.read_bytes())
        by_image: dict[int, list[Mapping[str, Any]]] = {int(one["id"]): [] for one in content["images"]}
        categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        for annotation in content["annotations"]:
            number = annotation["image_id"]
            if number not in by_image:
                raise ValueError(
                    f"annotation {annotation.get('id')} is of an image {number} that is not listed"
                )
            if annotation["category_id"] not in categories:
                raise ValueError(
                    f"annotation {annotation.get('id')} has category {annotation['category_id']}, which has no name"
                )
            by_image[number].append(
                {
                    "category_id": int(annotation["category_id"]),
                    "segmentation": annotation["segmentation"],
                    "area": float(annotation["area"]),
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                }
            )
        pictures = [
            Picture(
                int(one["id"]),
                str(one["file_name"]),
                int(one["height"]),
                int(one["width"]),
                tuple(by_image[one["id"]]),
            )
            for one in content["images"]
        ]
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a whole annotation file ({error})", FETCH) from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO's form; missing or wrong at {error}", FETCH) from error
    return Annotations(tuple(sorted(pictures, key=lambda one: one.number)), categories)


def draw(
    annotations: Sequence[Mapping[str, Any]], image: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Instances of an image of `image` = (height, width) drawn at `size`: numbers and class indices (H, W).

    Numbers run from 1 in the order given, 0 is none, -1 a crowd. Where instances overlap the smaller one is on top, and
    any of them is above a crowd. Polygons are scaled before they are drawn, so that small ones keep their shape.

    Raises DataError for a segmentation that is none.
    """
    numbers, labels = np.zeros(size, np.int16), np.zeros(size, np.int16)
    order = sorted(
        range(len(annotations)), key=lambda i: (-annotations[i]["iscrowd"], -annotations[i]["area"])
    )
    for index in order:
        annotation = annotations[index]
        inside = _mask(annotation["segmentation"], image, size)
        numbers[inside] = -1 if annotation["iscrowd"] else index + 1
        labels[inside] = annotation["label"]
    return numbers, labels


def box_of(segmentation: Any, image: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge in pixels of the image."""
    left, top, width, height = mask_module().toBbox(to_rle(segmentation, image)).tolist()
    return left, top, left + width, top + height


def _mask(segmentation: Any, image: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(segmentation, list):
        scale = np.array([size[1] / image[1], size[0] / image[0]])
        try:
            scaled = [
                (np.asarray(polygon, np.float64).reshape(-1, 2) * scale).ravel().tolist()
                for polygon in segmentation
            ]
        except (TypeError, ValueError) as error:
            raise DataError(f"a polygon is no list of x and y: {error}", FETCH) from error
        return _decoded(to_rle(scaled, size))
    resized: NDArray[np.bool_] = nearest(_decoded(to_rle(segmentation, image)), size)
    return resized


def _decoded(lengths: Any) -> NDArray[np.bool_]:
    try:
        mask: NDArray[np.bool_] = mask_module().decode(lengths).astype(bool)
    except ValueError as error:
        raise DataError(f"run lengths that are none of a mask: {error}", FETCH) from error
    return mask
