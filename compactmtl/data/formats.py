"""Masks, depth and normals in the file formats that data sets share, as arrays at the network's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.fit import PADDED, Fit, fit_to
from compactmtl.data.maps import Drawn, stored_map, turned_vectors
from compactmtl.data.pixels import ImageInfo
from compactmtl.errors import DataError
from compactmtl.tasks.placement import Size

_KINECT_INVALID = 65535  # what 7-Scenes writes where the sensor saw nothing; others write 0


def read_mask(
    path: Path,
    size: Size | Fit | None,
    classes: int,
    ignore: int | None = None,
    of: ImageInfo | None = None,
    drawn: Drawn | None = None,
) -> NDArray[np.uint8]:
    """Class indices uint8 (H, W) of a file with one number a pixel (a palette's index counts, not its color).

    At the network's size, padding as `ignore` or else 255; as it is without `size`.

    Raises DataError, naming the file, for a value that is neither one of the classes nor `ignore`, and where it does
    not fit the image `of` that it belongs to (`maps.stored_map`).
    """
    labels = stored_map(path, of, drawn).values
    if labels.ndim != 2:
        raise DataError(
            f"{path}: a mask needs one number a pixel, found {labels.shape[-1]} channels",
            "save the class numbers as a grayscale or palette image",
        )
    wrong = [int(v) for v in np.unique(labels) if not 0 <= v < classes and v != ignore]
    if wrong:
        allowed = f"0 to {classes - 1}" + (f" or {ignore} for ignored" if ignore is not None else "")
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise DataError(
            f"{path}: holds the value{'s' * (len(wrong) > 1)} {shown}, expected {allowed}",
            "a mask holds class numbers, not gray levels; mend the file or the list of classes",
        )
    return mask_at(labels.astype(np.uint8), size, ignore)


def mask_at(labels: NDArray[np.uint8], size: Size | Fit | None, ignore: int | None) -> NDArray[np.uint8]:
    """A mask (h, w) at the network's size; padding is `ignore`, or else 255."""
    if size is None:
        return labels
    resized: NDArray[np.uint8] = fit_to(size).map(labels, PADDED if ignore is None else ignore)
    return resized


def read_depth(
    path: Path,
    size: Size | Fit,
    units_per_metre: float,
    limit: float | None = None,
    of: ImageInfo | None = None,
    drawn: Drawn | None = None,
) -> NDArray[np.float32]:
    """Depth in metres, float32 (1, H, W), of a 16-bit file; 0 where it has 0 or 65535, or lies beyond `limit` metres."""
    units = read_depth_units(path, of, drawn)
    return metres(units, size, units_per_metre, limit, None if of is None else of.size)


def read_depth_units(path: Path, of: ImageInfo | None = None, drawn: Drawn | None = None) -> NDArray[Any]:
    """The stored numbers (H, W) of a depth file. Raises DataError for 8 bits or several channels.

    Depth of an image `of` may be larger or smaller than it, at its aspect ratio.
    """
    stored = stored_map(path, of, drawn, scaled=True).values
    if stored.ndim != 2 or stored.dtype.itemsize < 2:
        raise DataError(
            f"{path}: depth needs one 16-bit number a pixel, found {stored.dtype} {stored.shape}",
            "save depth as a 16-bit grayscale PNG, in millimetres",
        )
    return stored


def metres(
    stored: NDArray[Any],
    size: Size | Fit,
    units_per_metre: float,
    limit: float | None = None,
    of: Size | None = None,
) -> NDArray[np.float32]:
    """As `read_depth`, of numbers (H, W) already read; `of` is the size of their image."""
    units = fit_to(size).map(stored, 0, of)
    depth = (units / units_per_metre).astype(np.float32)
    unknown = (units <= 0) | (units >= _KINECT_INVALID)
    if limit is not None:
        unknown |= depth > limit
    depth[unknown] = 0
    return depth[None]


def read_normals(
    path: Path, size: Size | Fit, of: ImageInfo | None = None, drawn: Drawn | None = None
) -> NDArray[np.float32]:
    """Unit normals float32 (3, H, W) of an RGB file with n = value/127.5 - 1; 0 where the file is black.

    A map that is put upright has its vectors turned with it. Sizes as of `read_depth_units`.
    """
    pixels = stored_map(path, of, drawn, scaled=True)
    stored = pixels.values
    if stored.ndim != 3 or stored.shape[-1] != 3 or stored.dtype != np.uint8:
        raise DataError(
            f"{path}: normals need 8-bit RGB, found {stored.dtype} {stored.shape}",
            "save n as round((n + 1) * 127.5) in red, green and blue",
        )
    coded = fit_to(size).map(stored.transpose(2, 0, 1), 0, None if of is None else of.size)
    return np.ascontiguousarray(turned_vectors(unit_normals(coded), pixels.turned))


def unit_normals(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 (3, H, W) of coded normals uint8 (3, H, W), as `read_normals`."""
    normals = stored.astype(np.float32) / 127.5 - 1
    length = np.sqrt((normals**2).sum(0, keepdims=True))
    known = stored.any(0, keepdims=True) & (length > 1e-3)
    return np.where(known, normals / np.maximum(length, 1e-3), 0).astype(np.float32)


def coded_normals(normals: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """The inverse of `unit_normals`: uint8 (3, H, W), black where unknown (0)."""
    coded = np.rint((normals + 1) * 127.5).clip(0, 255)
    # A normal that would code as black would read as unknown; none of unit length does.
    return np.where(np.any(normals != 0, axis=0, keepdims=True), coded, 0).astype(np.uint8)
