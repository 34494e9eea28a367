"""The folder format with one target of every kind, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

DATASET = """\
description: blocks in a room
targets:
  segmentation: {kind: mask, classes: [floor, wall, block], ignore_index: 255}
  depth: {kind: depth}
  normals: {kind: normals}
  weather: {kind: class, classes: [sun, rain]}
  things: {kind: multilabel, classes: [ball, box]}
  height: {kind: scalar, unit: cm}
"""


def write_folder(
    root: Path, *, count: int = 10, size: tuple[int, int] = (24, 32), split: bool = False, seed: int = 0
) -> Path:
    """`count` images with every target; with `split` half of them in images/train and half in images/val."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(DATASET)
    weather, things, height = ["image,value"], ["image,box,ball"], ["image,value"]
    for number in range(count):
        name = f"{('train', 'val')[number % 2]}/{number:03d}" if split else f"{number:03d}"
        labels = rng.integers(0, 3, (4, 4)).astype(np.uint8).repeat(size[0] // 4, 0).repeat(size[1] // 4, 1)
        labels[0] = 255
        depth = np.full(size, 1000 + number, np.uint16)
        depth[-1] = 0
        normal = np.broadcast_to(np.array([128, 128, 0], np.uint8), (*size, 3))
        picture = (60 * np.minimum(labels, 3))[..., None].repeat(3, 2)
        for folder, pixels in (
            ("images", picture),
            ("segmentation", labels),
            ("depth", depth),
            ("normals", normal),
        ):
            path = root / folder / f"{name}.{'jpg' if folder == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        weather.append(f"{name}.jpg,{('sun', 'rain')[number % 3 % 2]}")
        things.append(f"{name},{number % 2},{'' if number == 4 else 1}")
        height.append(f"{name}.jpg,{150.5 + number}")
    for table, lines in (("weather", weather), ("things", things), ("height", height)):
        (root / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return root
