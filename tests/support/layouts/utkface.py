"""UTKFace in its true layout: UTKFace/<split>/<age>_<gender>_<race>_<date>.jpg.chip.jpg, with one name that says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

AGES = (1, 26, 40, 63, 99, 116, 18, 33)


def write_utkface(root: Path, *, count: int = 4) -> None:
    """`count` faces of 64x64 pixels in each of train and val, as brightness grows with age."""
    generator = np.random.default_rng(0)
    for split_number, split in enumerate(("train", "val")):
        folder = root / "UTKFace" / split
        folder.mkdir(parents=True)
        for index in range(count):
            age = AGES[index % len(AGES)]
            noise = generator.integers(0, 24, (64, 64, 3))
            stamp = f"201701041655{split_number:02d}{index:05d}"
            path = folder / f"{age}_{index % 2}_{index % 5}_{stamp}.jpg.chip.jpg"
            Image.fromarray((noise + 2 * age - 1).clip(0, 255).astype(np.uint8)).save(path, format="JPEG")
    image = np.zeros((64, 64, 3), np.uint8)
    Image.fromarray(image).save(root / "UTKFace" / "train" / "61_1_20170109150557335.jpg.chip.jpg")
