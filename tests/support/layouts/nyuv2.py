"""NYUv2 in its three layouts, of tilted planes seen by its camera: the labelled .mat, PNG files, and MTAN's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from compactmtl.data.nyuv2_labels import LABELS, NAMED_LABELS
from compactmtl.data.nyuv2_layouts import CAMERA

WALL, BED, BOX, CHAIR = 21, 157, 26, 5  # of the file's labels


@dataclass(frozen=True)
class Plane:
    """One frame: image (H, W, 3), the file's labels and depth in metres (H, W), and the normal of the whole picture."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint16]
    depth: NDArray[np.float32]
    normal: NDArray[np.float64]


def planes(count: int, size: tuple[int, int], seed: int = 0) -> list[Plane]:
    """Frames of planes that face the camera at 2 to 4 m, each quarter with a label of its own; a corner is unlabeled."""
    rng = np.random.default_rng(seed)
    camera = CAMERA.resized(size)
    x = (np.arange(size[1]) - camera.center[0]) / camera.focal[0]
    y = (np.arange(size[0]) - camera.center[1]) / camera.focal[1]
    found = []
    for _ in range(count):
        normal = np.array([*rng.uniform(-0.4, 0.4, 2), -1.0])
        normal /= np.linalg.norm(normal)
        depth = rng.uniform(2, 4) * normal[2] / (normal[0] * x + normal[1] * y[:, None] + normal[2])
        labels = np.full(size, WALL, np.uint16)
        labels[size[0] // 2 :, : size[1] // 2] = BED
        labels[: size[0] // 2, size[1] // 2 :] = BOX
        labels[size[0] // 2 :, size[1] // 2 :] = CHAIR
        labels[:3, :3] = 0
        image = np.clip(depth[..., None] * np.array([60, 50, 40]), 0, 255).astype(np.uint8)
        found.append(Plane(image, labels, depth.astype(np.float32), normal))
    return found


def write_nyuv2(
    root: Path, *, count: int = 6, size: tuple[int, int] = (48, 64), split: bool = True, **left_out: Any
) -> Path:
    """nyu_depth_v2_labeled.mat of `count` frames, the first two thirds to train (splits.mat); gives the root.

    The top rows of rawDepths are 0. Frames 2 i and 2 i + 1 are of one scene.
    """
    frames = planes(count, size)
    depths = np.stack([frame.depth.T for frame in frames])
    raw = depths.copy()
    raw[:, :, :4] = 0
    arrays: dict[str, NDArray[Any]] = {
        "images": np.stack([frame.image.transpose(2, 1, 0) for frame in frames]),
        "depths": depths,
        "rawDepths": raw,
        "labels": np.stack([frame.labels.T for frame in frames]),
    }
    names = [NAMED_LABELS.get(number, "thing") for number in range(1, LABELS + 1)]
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, values in arrays.items():
            if name not in left_out.get("without", ()):
                file.create_dataset(name, data=values, compression="gzip", chunks=(1, *values.shape[1:]))
        _texts(file, "names", left_out.get("names", names))
        _texts(file, "scenes", [f"room_{number // 2:04d}" for number in range(count)])
    if split:
        numbers = np.arange(1, count + 1, dtype=np.uint16)
        first = 2 * count // 3
        held = {"trainNdxs": numbers[:first, None], "testNdxs": numbers[first:, None]}
        savemat(root / "splits.mat", held)
    return root


def write_nyuv2_npy(
    root: Path, *, count: int = 3, size: tuple[int, int] = (36, 48), axes: str = "xyz"
) -> Path:
    """MTAN's {train,val}/{image,label,depth,normal}/0.npy; `axes` "xzy" writes normals as x, z and -y."""
    for number, split in enumerate(("train", "val")):
        for name in ("image", "label", "depth", "normal"):
            (root / split / name).mkdir(parents=True)
        for index, frame in enumerate(planes(count, size, seed=number)):
            label = np.where(frame.labels == 0, -1, frame.labels.astype(np.int64) % 13).astype(np.float32)
            n = frame.normal if axes == "xyz" else frame.normal[[0, 2, 1]] * np.array([1, 1, -1])
            normal = np.broadcast_to(n, (*size, 3)).astype(np.float32).copy()
            normal[:2] = 0
            np.save(root / split / "image" / f"{index}.npy", frame.image.astype(np.float32) / 255)
            np.save(root / split / "label" / f"{index}.npy", label)
            np.save(root / split / "depth" / f"{index}.npy", frame.depth[..., None])
            np.save(root / split / "normal" / f"{index}.npy", normal)
    return root


def write_nyuv2_png(root: Path, *, count: int = 3, size: tuple[int, int] = (48, 64)) -> Path:
    """{train,val}/{image,label,depth}/0001.png with NYU40 labels; without normals."""
    for number, split in enumerate(("train", "val")):
        for name in ("image", "label", "depth"):
            (root / split / name).mkdir(parents=True)
        for index, frame in enumerate(planes(count, size, seed=number)):
            label = np.where(frame.labels == 0, 255, frame.labels % 40).astype(np.uint8)
            depth = np.rint(frame.depth * 5000).astype(np.uint16)
            for name, values in (("image", frame.image), ("label", label), ("depth", depth)):
                Image.fromarray(values).save(root / split / name / f"{index + 1:04d}.png")
    return root


def _texts(file: Any, name: str, texts: list[str]) -> None:
    """A cell array of strings as MATLAB writes it: references to columns of character codes."""
    kept = file.require_group("#refs#")
    columns = {
        text: kept.create_dataset(f"{name}{number}", data=np.array([[ord(c)] for c in text], np.uint16)).ref
        for number, text in enumerate(dict.fromkeys(texts))
    }
    file.create_dataset(name, data=np.array([[columns[text] for text in texts]], dtype=h5py.ref_dtype))
