"""Cityscapes in its two layouts: the official folders by city, and MTAN's arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

ROAD, CAR, PERSON, SKY, EGO, PARKING = 7, 26, 24, 23, 1, 9
FX, BASELINE = 2262.52, 0.209313
CITIES = {"train": ("aachen", "ulm"), "val": ("lindau",), "test": ("berlin",)}


def write_cityscapes(
    root: Path,
    *,
    count: int = 3,
    size: tuple[int, int] = (64, 128),
    parts: bool = True,
    disparity: bool = True,
    camera: bool = True,
) -> Path:
    """leftImg8bit/, gtFine/, disparity/, camera/ and gtFinePanopticParts/ with `count` frames a city; gives the root.

    Of each frame the top half is sky with disparity unknown; below, the left half is road, the right a car whose
    lower half are wheels, and between them a person's head. The last row is the ego vehicle. Disparity grows by a
    pixel with each row from 1.
    """
    height, width = size
    rng = np.random.default_rng(0)
    for split, cities in CITIES.items():
        for city in cities:
            for number in range(count):
                name = f"{city}_{number:06d}_000019"
                labels = np.full(size, SKY, np.uint8)
                labels[height // 2 :] = ROAD
                labels[height // 2 :, width // 2 :] = CAR
                labels[height // 2 :, width // 2 - 4 : width // 2] = PERSON
                labels[-1] = EGO
                uids = labels.astype(np.int32)
                uids[labels == CAR] = CAR * 1000 + 1
                wheels = (labels == CAR) & (np.arange(height)[:, None] >= 3 * height // 4)
                uids[wheels] = (CAR * 1000 + 1) * 100 + 2
                uids[labels == PERSON] = (PERSON * 1000 + number) * 100 + 2
                rows = np.arange(height)[:, None] - height // 2 + 1
                stored = np.broadcast_to(np.where(rows > 0, rows * 256 + 1, 0), size).astype(np.uint16)
                image = labels[..., None] * np.array([9, 5, 3]) + rng.integers(0, 20, (*size, 3))
                image = np.clip(image, 0, 255).astype(np.uint8)
                calibration = {"extrinsic": {"baseline": BASELINE}, "intrinsic": {"fx": FX, "fy": FX}}

                _save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
                if split == "test":
                    continue
                _save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", labels)
                if disparity:
                    _save(root / "disparity" / split / city / f"{name}_disparity.png", stored)
                if parts:
                    folder = root / "gtFinePanopticParts" / split / city
                    _save(folder / f"{name}_gtFinePanopticParts.tif", uids)
                if camera:
                    path = root / "camera" / split / city / f"{name}_camera.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(calibration))
    return root


def write_cityscapes_npy(root: Path, *, count: int = 3, size: tuple[int, int] = (32, 64)) -> Path:
    """MTAN's {train,val}/{image,label_7,label_19,depth}/0.npy."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("image", "label_7", "label_19", "depth"):
            (root / split / name).mkdir(parents=True)
        for index in range(count):
            top = root / split
            np.save(top / "image" / f"{index}.npy", rng.random((*size, 3)).astype(np.float32))
            np.save(top / "label_7" / f"{index}.npy", rng.integers(-1, 7, size).astype(np.float64))
            np.save(top / "label_19" / f"{index}.npy", rng.integers(-1, 19, size).astype(np.float64))
            np.save(top / "depth" / f"{index}.npy", rng.random((*size, 1)).astype(np.float32))
    return root


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
