"""Files of label, depth and normals maps: read as they are, and resized so that no value is a mixture of two pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.arrays import load_array
from compactmtl.data.pixels import FETCH_AGAIN, ImageInfo, load, native, one_picture, opened, turned
from compactmtl.errors import DataError
from compactmtl.tasks.placement import nearest as nearest

Drawn = Literal["upright", "stored"]  # what maps without an EXIF orientation of their own were drawn on

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@dataclass(frozen=True)
class StoredMap:
    """A map's own integers, (H, W) or (H, W, channels), upright; `turned` is the EXIF orientation that was undone."""

    values: NDArray[Any]
    turned: int = 1


def read_map(path: Path) -> NDArray[Any]:
    """An image file's own integers, (H, W) or (H, W, channels): never scaled, and a palette's indices, not its colors.

    Put upright where the file itself has an EXIF orientation; of 1 bit a pixel 0 and 1.
    Raises DataError, naming the file, where it is missing or not a whole image.
    """
    return stored_map(path).values


def stored_map(
    path: Path, of: ImageInfo | None = None, drawn: Drawn | None = None, *, scaled: bool = False
) -> StoredMap:
    """A map's own integers, put upright, and held to the size of the image `of` that it belongs to.

    A map's own EXIF orientation comes first. Where only the image has one, `drawn` says whether the map was drawn on
    the upright picture or on the stored pixels; without it the map's size has to tell, and where both would have one
    size it cannot. `scaled` lets a map be larger or smaller at the image's aspect ratio.

    Raises DataError, naming both files, for a map that does not fit, or where it is not known how it lies.
    """
    with opened(path, "it belongs to an image that is there; fetch it") as image:
        one_picture(image, path)
        said, rest = load(image)
        values = native(np.asarray(image))
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise DataError(
            f"{path}: a map needs whole numbers, found {values.dtype}",
            "check how the file was made",
        )
    turn = said or 1
    values = turned(values, rest)
    if of is not None:
        if said is None and (of.orientation or 1) != 1:
            if drawn is None:
                _told_by_size(path, values.shape[:2], of, scaled=scaled)
            elif drawn == "stored":
                turn = of.orientation or 1
                values = turned(values, turn)
        check_fits(path, values.shape[:2], of, scaled=scaled)
    return StoredMap(values, turn)


def check_fits(path: Path, size: tuple[int, ...], of: ImageInfo, *, scaled: bool = False) -> None:
    """Raise DataError, naming both files, unless a map of this height and width has the size of its image, or its shape."""
    if not _fits(size, of.size, scaled=scaled):
        raise DataError(_sizes(path, size, of), _mend(of, scaled=scaled))


def check_beside(path: Path, size: tuple[int, ...], first: ImageInfo, name: str) -> None:
    """Raise DataError, naming both files, unless the picture of input `name` has the shape of its sample's first one."""
    if not _fits(size, first.size, scaled=True):
        raise DataError(
            _sizes(path, size, first),
            f"the pictures of one sample need one aspect ratio: crop that of input {name!r}",
        )


def turned_vectors(normals: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Vectors (3, H, W) whose pixels were put upright from this EXIF orientation, with x right and y down again."""
    x, y, z = normals
    if orientation >= 5:
        x, y = y, x
    if orientation in (2, 3, 6, 7):
        x = -x
    if orientation in (3, 4, 7, 8):
        y = -y
    return np.stack([x, y, z])


def _told_by_size(path: Path, size: tuple[int, ...], of: ImageInfo, *, scaled: bool) -> None:
    """Raise DataError unless the map has the upright image's size and not that of the stored pixels."""
    stored = of.size[::-1] if (of.orientation or 1) >= 5 else of.size
    if _fits(size, stored, scaled=scaled):
        raise DataError(
            f"{_sizes(path, size, of)}; the image has EXIF orientation {of.orientation} and the map has none, so "
            + (
                "it seems to be drawn on the stored pixels"
                if stored != of.size
                else "it cannot be decided whether it was drawn on the upright picture or on the stored pixels"
            ),
            "of a folder of your own say `drawn: upright` or `drawn: stored` in dataset.yaml; else store the image upright",
        )


def _fits(size: tuple[int, ...], expected: tuple[int, int], *, scaled: bool) -> bool:
    if size == expected:
        return True
    # Sides are whole pixels: a true ratio is met within the rounding of one of them.
    (h, w), (height, width) = size, expected
    return scaled and abs(h * width - w * height) <= max(height, width)


def _sizes(path: Path, size: tuple[int, ...], of: ImageInfo) -> str:
    return f"{path}: {size[1]}x{size[0]} pixels (width x height), its image {of.path} is {of.size[1]}x{of.size[0]}"


def _mend(of: ImageInfo, *, scaled: bool) -> str:
    turn = " (upright, as its EXIF says)" if (of.orientation or 1) != 1 else ""
    share = "of the image's aspect ratio" if scaled else "of the image's size"
    return f"a map shows the same pixels as its image{turn}: make it {share}, or remove it"


def read_npy(path: Path, dimensions: int) -> NDArray[Any]:
    """The array of a .npy file that has this many dimensions, a last one of size 1 left out or added.

    Raises DataError, naming the file, where it is missing, cut short, or of another form.
    """
    try:
        loaded = load_array(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "it belongs to an image that is there; fetch it") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy array ({error})", FETCH_AGAIN) from error
    if loaded.dtype.kind not in "fiub":
        raise DataError(f"{path}: not one array of numbers", FETCH_AGAIN)
    values = native(loaded)
    if values.ndim == dimensions + 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != dimensions or 0 in values.shape:
        raise DataError(
            f"{path}: expected an array of {dimensions} dimensions, found shape {values.shape}", FETCH_AGAIN
        )
    return values


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
        load_array(path, "r")
    except FileNotFoundError:
        return f"{path}: no such file"
    except (OSError, ValueError, EOFError) as error:
        return f"{path}: not a whole .npy array ({error})"
    return None
