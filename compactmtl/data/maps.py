"""Files of label, depth and normals maps: read as they are, and resized so that no value is a mixture of two pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compactmtl.errors import DataError

_FETCH_AGAIN = "remove the file or fetch it again"
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def read_map(path: Path) -> NDArray[Any]:
    """An image file's own integers, (H, W) or (H, W, channels): never scaled, and a palette's indices, not its colors.

    Raises DataError, naming the file, where it is missing or not a whole image.
    """
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "it belongs to an image that is there; fetch it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a whole image ({error})", _FETCH_AGAIN) from error
    if values.dtype.kind not in "iu":
        raise DataError(
            f"{path}: a map needs whole numbers, found {values.dtype}",
            "check how the file was made",
        )
    return values


def read_npy(path: Path, dimensions: int) -> NDArray[Any]:
    """The array of a .npy file that has this many dimensions, a last one of size 1 left out or added.

    Raises DataError, naming the file, where it is missing, cut short, or of another form.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "it belongs to an image that is there; fetch it") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy array ({error})", _FETCH_AGAIN) from error
    if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in "fiub":
        raise DataError(f"{path}: not one array of numbers", _FETCH_AGAIN)
    values: NDArray[Any] = loaded
    if values.ndim == dimensions + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != dimensions or 0 in values.shape:
        raise DataError(
            f"{path}: expected an array of {dimensions} dimensions, found shape {values.shape}", _FETCH_AGAIN
        )
    return values


def nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(..., H, W) at `size` (height, width): each new pixel takes the old one that lies under its center."""
    for axis, count in ((-2, size[0]), (-1, size[1])):
        old = values.shape[axis]
        if old != count:
            index = ((2 * np.arange(count) + 1) * old) // (2 * count)
            values = np.take(values, index, axis)
    return np.ascontiguousarray(values)


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (3, H, W) stretched to `size` with an antialiased bilinear filter, as `read_image` does it."""
    if image.shape[-2:] == size:
        return np.ascontiguousarray(image)
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized, np.uint8).transpose(2, 0, 1))


def relabel(values: NDArray[Any], table: NDArray[np.uint8], where: Path | str) -> NDArray[np.uint8]:
    """`table[values]`; DataError, naming the file, for a value that the table does not have."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= len(table):
        wrong = low if low < 0 else high
        raise DataError(
            f"{where}: label {wrong} is none of 0 to {len(table) - 1}",
            "check that the file is of this data set and was not converted to colors or resized with smoothing",
        )
    return table[values.astype(np.int64)]


def check_png(path: Path) -> str | None:
    """What is wrong with a PNG file that is missing, another format, or cut short; it is not decoded, so quick."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0, 2)
            file.seek(max(file.tell() - len(_PNG_END), 0))
            tail = file.read()
    except FileNotFoundError:
        return f"{path}: no such file"
    except OSError as error:
        return f"{path}: cannot be read ({error})"
    if head != _PNG_HEAD:
        return f"{path}: not a PNG image"
    return None if tail == _PNG_END else f"{path}: cut short"


def check_npy(path: Path) -> str | None:
    """What is wrong with a .npy file that is missing, another format, or cut short; its values are not read."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return f"{path}: no such file"
    except (OSError, ValueError, EOFError) as error:
        return f"{path}: not a whole .npy array ({error})"
    return None
