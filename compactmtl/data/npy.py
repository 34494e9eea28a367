"""The .npy files of MTAN and LibMTL: one array a file, named by number, channels last, unlabeled -1 and unknown 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.arrays import load_array
from compactmtl.data.fit import Fit, fit_to
from compactmtl.data.maps import read_npy
from compactmtl.data.pixels import ImageInfo
from compactmtl.errors import DataError
from compactmtl.tasks.placement import Size


def numbered(folder: Path) -> list[Path]:
    """The files 0.npy, 1.npy, ... of a folder in the order of their numbers."""
    files = [path for path in folder.glob("*.npy") if path.stem.isdecimal()]
    return sorted(files, key=lambda path: int(path.stem))


def npy_picture(path: Path, size: Size | Fit) -> tuple[NDArray[np.uint8], ImageInfo]:
    """uint8 (C, H, W) of a file with values from 0 to 1, or with bytes, and what maps of it must fit.

    Raises DataError for any others.
    """
    values = _channels_first(path)
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{path}: values from {low:.3g} to {high:.3g}, expected 0 to 1", "fetch the data again"
            )
        values = np.rint(values * 255).astype(np.uint8)
    return fit_to(size).rgb(values, str(path)), ImageInfo(path, (values.shape[1], values.shape[2]))


def npy_info(path: Path) -> ImageInfo:
    """What maps of an image (H, W, 3) must fit; its values are not read."""
    try:
        height, width, *_ = load_array(path, "r").shape
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy array ({error})", "fetch the data again") from error
    return ImageInfo(path, (height, width))


def npy_mask(path: Path, size: Size | Fit, classes: int, ignore: int) -> NDArray[np.uint8]:
    """Class indices (H, W) of a file with whole numbers from -1, which becomes `ignore`. DataError for any others."""
    stored = read_npy(path, 2)
    labels = fit_to(size).map(stored.astype(np.int64) if stored.dtype.kind == "b" else stored, -1)
    right = (labels == np.rint(labels)) & (labels >= -1) & (labels < classes)
    if not right.all():
        raise DataError(
            f"{path}: holds the value {labels[~right][0]:g}, expected -1 (unlabeled) to {classes - 1}",
            "check that the file is of this data set and was not resized with smoothing",
        )
    return np.where(labels < 0, ignore, labels).astype(np.uint8)


def npy_positive(path: Path, size: Size | Fit | None) -> NDArray[np.float32]:
    """Depth or disparity (1, H, W), as stored with size None; 0 where it is not finite or not positive."""
    values = read_npy(path, 2).astype(np.float32)[None]
    values = np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float32)
    return values if size is None else fit_to(size).map(values)


def npy_normals(path: Path, size: Size | Fit) -> NDArray[np.float32]:
    """Unit normals (3, H, W); 0 where the file has none."""
    stored = _channels_first(path)
    if stored.dtype.kind != "f":
        raise DataError(
            f"{path}: normals need real numbers from -1 to 1, found {stored.dtype}", "fetch the data again"
        )
    normals = fit_to(size).map(stored).astype(np.float32)
    length = np.sqrt((normals**2).sum(0, keepdims=True))
    known = np.isfinite(length) & (length > 0.5)  # an averaged or empty one points nowhere
    return np.where(known, normals / np.where(known, length, 1), 0).astype(np.float32)


def _channels_first(path: Path) -> NDArray[Any]:
    values = read_npy(path, 3)
    if values.shape[-1] != 3:
        raise DataError(f"{path}: expected the shape (H, W, 3), found {values.shape}", "fetch the data again")
    return values.transpose(2, 0, 1)
