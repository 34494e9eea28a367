"""RGB-D folders of tilted planes with exact depth and normals, and a raw 7-Scenes sequence of them, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOCAL = 60.0


def plane(size: tuple[int, int], normal: tuple[float, float, float], distance: float) -> NDArray[np.float64]:
    """Depth in metres of the plane n . P = -distance as a camera with FOCAL and a centered axis sees it."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x = (columns - (size[1] - 1) / 2) / FOCAL
    y = (rows - (size[0] - 1) / 2) / FOCAL
    depth: NDArray[np.float64] = -distance / (normal[0] * x + normal[1] * y + normal[2])
    return depth


def write_rgbd(
    root: Path, *, count: int = 4, size: tuple[int, int] = (36, 48), seed: int = 0, normals: bool = True
) -> Path:
    """`<root>/{train,val,test}/{rgb,depth,normal}` with `count` frames each, and camera.json; gives the root.

    The top left corner of each frame has no depth and no normal. The surfaces are rough, as a camera's noise is: on smooth
    ones most channels of a network hardly vary, and norms that are estimated there magnify rounding.
    """
    rng, texture = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    for split in ("train", "val", "test"):
        for number in range(count):
            n = unit(rng.uniform(-0.4, 0.4, 2))
            depth = np.rint(1000 * plane(size, n, float(rng.uniform(1, 2)))).astype(np.uint16)
            depth[:4, :4] = 0
            coded = np.rint((np.array(n) + 1) * 127.5).astype(np.uint8)
            normal = np.broadcast_to(coded, (*size, 3)).copy()
            normal[:4, :4] = 0
            shade = depth[..., None] / 20 * np.array([1, 0.8, 0.6])
            picture = np.clip(shade + texture.normal(0, 50, (*size, 3)), 0, 255).astype(np.uint8)
            stem = f"frame-{number:06d}"
            for folder, pixels in (("rgb", picture), ("depth", depth), ("normal", normal)):
                if folder == "normal" and not normals:
                    continue
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                suffix = "jpg" if folder == "rgb" else "png"
                Image.fromarray(pixels).save(root / split / folder / f"{stem}.{suffix}")
    (root / "camera.json").write_text(json.dumps({f"intrinsics_{size[1]}x{size[0]}": matrix(size)}))
    return root


def write_sevenscenes_raw(root: Path, *, count: int = 3, size: tuple[int, int] = (36, 48)) -> Path:
    """A scene as Microsoft ships it: seq-01 for training, seq-02 for testing, color, depth and pose by frame."""
    for number, sequence in enumerate(("seq-01", "seq-02")):
        folder = root / sequence
        folder.mkdir(parents=True)
        for frame in range(count):
            depth = np.rint(1000 * plane(size, unit(np.array([0.1 * frame, 0.2])), 1.5 + number)).astype(
                np.uint16
            )
            depth[-3:] = 65535
            stem = f"frame-{frame:06d}"
            Image.fromarray(depth).save(folder / f"{stem}.depth.png")
            gray = np.full((*size, 3), 40 * frame + number, np.uint8)
            Image.fromarray(gray).save(folder / f"{stem}.color.png")
            (folder / f"{stem}.pose.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (root / "TrainSplit.txt").write_text("sequence1\n")
    (root / "TestSplit.txt").write_text("sequence2\n")
    return root


def unit(tilt: NDArray[Any]) -> tuple[float, float, float]:
    """The unit normal towards the camera with this tilt (x, y)."""
    length = float(np.sqrt(tilt[0] ** 2 + tilt[1] ** 2 + 1))
    return float(tilt[0]) / length, float(tilt[1]) / length, -1 / length


def matrix(size: tuple[int, int]) -> list[list[float]]:
    """The camera matrix of `plane`."""
    return [[FOCAL, 0, (size[1] - 1) / 2], [0, FOCAL, (size[0] - 1) / 2], [0, 0, 1]]
