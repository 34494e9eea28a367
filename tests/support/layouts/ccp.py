"""Clothing Co-Parsing's folders, converted and original, with drawn photos, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from compactmtl.data.ccp import CLASSES

NUMBERS = {"train": 1, "val": 805, "test": 905}  # the first photo of each split


def write_ccp(root: Path, *, count: int = 4, size: tuple[int, int] = (48, 32), seed: int = 0) -> Path:
    """`<root>/images`, `<root>/labels` and tags.json with `count` photos a split; gives the root."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    tags: dict[str, list[int]] = {}
    for first in NUMBERS.values():
        for number in range(first, first + count):
            labels = drawn(number + seed, size)
            Image.fromarray(labels).save(root / "labels" / f"{number:04d}.png")
            picture = np.stack([4 * labels, 255 - 4 * labels, np.full_like(labels, number % 256)], -1)
            Image.fromarray(picture).save(root / "images" / f"{number:04d}.jpg")
            tags[f"{number:04d}"] = np.unique(labels).tolist()
    content = {"classes": list(CLASSES), "tags_from_pixels": tags, "tags_image_level_only": {}}
    (root / "tags.json").write_text(json.dumps(content))
    return root


def write_ccp_original(root: Path, *, count: int = 3, size: tuple[int, int] = (48, 32)) -> Path:
    """The repository as the authors ship it: photos/, annotations/{pixel,image}-level/*.mat and label_list.mat."""
    from scipy.io import savemat

    for folder in ("photos", "annotations/pixel-level", "annotations/image-level"):
        (root / folder).mkdir(parents=True)
    names = np.empty((1, len(CLASSES)), object)
    names[0] = CLASSES
    savemat(root / "label_list.mat", {"label_list": names})
    for number in range(1, count + 1):
        labels = drawn(number, size)
        savemat(root / "annotations/pixel-level" / f"{number:04d}.mat", {"groundtruth": labels})
        Image.fromarray(labels).convert("RGB").save(root / "photos" / f"{number:04d}.jpg")
    savemat(root / "annotations/image-level" / "1005.mat", {"tags": np.array([[19, 41]], np.uint8)})
    Image.fromarray(drawn(5, size)).convert("RGB").save(root / "photos" / "1005.jpg")
    return root


def drawn(number: int, size: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Labels (H, W): background, hair above, a garment that depends on the number, skin and shoes below."""
    labels = np.zeros(size, np.uint8)
    height, width = size
    middle = slice(width // 4, 3 * width // 4)
    for row, name in enumerate(("hair", "skin", CLASSES[1 + number % 58], "jeans", "shoes")):
        labels[row * height // 5 : (row + 1) * height // 5, middle] = CLASSES.index(name)
    return labels
