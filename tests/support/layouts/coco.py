"""COCO 2017 as its archives unpack, drawn: disks and squares of two of its classes, a crowd, and stuff maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CATEGORIES = {1: "person", 18: "dog", 90: "toothbrush"}  # with gaps, as COCO's
GRASS, SKY = 124, 157
SIZE = (60, 80)  # height and width


def write_coco(root: Path, *, count: int = 4, stuff: bool = False, crowd: bool = True) -> Path:
    """Write `count` images a split below `root`/coco and return that folder.

    Each image shows a person (a polygon of two parts, behind), a dog (a polygon, in front) and, in the first of a
    split and with `crowd`, a crowd of toothbrushes as run lengths. `info` and `licenses` are missing.
    """
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    for offset, split in enumerate(("train", "val")):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / f"{split}2017").mkdir()
        for index in range(count):
            number = 1000 * offset + 7 * index + 9
            name = f"{number:012d}.jpg"
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            left = 10 + index % 3 * 5
            shown = [
                (1, [_box(left, 8, 30, 24), _box(left, 36, 30, 16)], 30 * 40),
                (18, [_box(left + 20, 16, 20, 24)], 20 * 24),
            ]
            for category, polygons, area in shown:
                annotations.append(_annotation(len(annotations), number, category, polygons, area, 0))
            if crowd and index == 0:
                mask = np.zeros(SIZE, np.uint8)
                mask[50:, 60:] = 1
                annotations.append(
                    _annotation(len(annotations), number, 90, run_lengths(mask), int(mask.sum()), 1)
                )
            _save(folder, split, name, left, stuff)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": key, "name": value} for key, value in CATEGORIES.items()],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def run_lengths(mask: NDArray[np.uint8]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": lengths if flat[0] == 0 else [0, *lengths]}


def _box(left: int, top: int, width: int, height: int) -> list[float]:
    right, bottom = left + width, top + height
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def _annotation(
    index: int, image: int, category: int, segmentation: Any, area: int, crowd: int
) -> dict[str, Any]:
    return {
        "id": 900100000000 + index,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": float(area),
        "bbox": [0, 0, 1, 1],
        "iscrowd": crowd,
    }


def _save(folder: Path, split: str, name: str, left: int, stuff: bool) -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:] = (90, 140, 60)
    picture[8:52, left : left + 30] = (220, 180, 150)
    picture[16:40, left + 20 : left + 40] = (60, 50, 40)
    Image.fromarray(picture).save(folder / f"{split}2017" / name, quality=95)
    if not stuff:
        return
    labels = np.full(SIZE, GRASS - 1, np.uint8)
    labels[:8] = SKY - 1
    labels[8:52, left : left + 30] = 0
    labels[16:40, left + 20 : left + 40] = 17
    labels[-2:] = 255
    maps = folder / "stuffthingmaps" / f"{split}2017"
    maps.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(maps / f"{Path(name).stem}.png")
