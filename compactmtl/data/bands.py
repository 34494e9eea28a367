"""An image file of any number of channels as uint8: what Pillow reads by `pixels`, TIFF of many bands, and .npy arrays.

Bands of 8 bits stay as they are, those of 16 bits are value / 257, rounded; numbers of other types say no range and are
refused, unless `limits` give one. A .npy file is (H, W), (H, W, bands) or (bands, H, W); where it could be either, the bands come last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from compactmtl.artifacts.arrays import load_array
from compactmtl.data.pixels import (
    FETCH_AGAIN,
    IMAGE_SUFFIXES,
    MODES,
    ImageInfo,
    native,
    read_picture_file,
    to_8_bits,
    turned,
)
from compactmtl.errors import DataError, MissingDependencyError

ARRAY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")
BAND_SUFFIXES = (*IMAGE_SUFFIXES, ARRAY_SUFFIX)
_TIFF_HEADS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_BITS = 258  # TIFF's tag of the bits of each channel
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = (b"\x02", b"\x04", b"\x06")  # RGB, gray with alpha, RGBA
_PAGES = "CIQ"  # letters by which tifffile calls a first axis of pictures that lie one behind another


def read_pixels(
    path: Path,
    channels: int = 3,
    *,
    upright: bool = True,
    limits: tuple[float, float] | None = None,
) -> tuple[NDArray[np.uint8], ImageInfo]:
    """The file as uint8 (channels, H, W), upright unless told otherwise, and what maps of it must fit.

    `limits` are the values that become 0 and 255, of files of more than 8 bits.

    Raises DataError, naming the file, where it is missing, damaged, of another number of channels, or of numbers without
    a range; MissingDependencyError where a TIFF needs a package that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ARRAY_SUFFIX:
        values, said = _array(path, channels), None
    elif suffix in TIFF_SUFFIXES and _is_tiff(path) and _needs_tifffile(path, channels, limits):
        values, said = _tiff(path, channels)
    elif channels in MODES:
        if limits is not None and _deep_png(path):
            raise DataError(
                f"{path}: holds colors of 16 bits, of which Pillow keeps the upper 8, so that no range can be heeded",
                "save it as .tif or .npy, or leave data.range out",
            )
        picture, info = read_picture_file(path, channels, upright=upright, limits=limits)
        pixels = np.asarray(picture, np.uint8)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels), info
    elif not path.exists():
        raise DataError(f"{path}: no such file", "check the path")
    else:
        raise DataError(
            f"{path}: no file of {channels} channels",
            "images of so many data.channels are .tif or .npy; pictures of other formats have 1, 3 or 4",
        )
    values = native(values)
    known = limits is not None and values.dtype.kind in "iuf"
    if values.dtype != np.uint8 and (known or values.dtype == np.uint16):
        values = to_8_bits(values, limits)
    if values.dtype != np.uint8:
        raise DataError(
            f"{path}: numbers of type {values.dtype}, of which no range of brightness is known",
            "say the values that become black and white in data.range, or save them as uint8 or uint16",
        )
    if upright and said is not None:
        values = turned(values, said)
    pixels = np.ascontiguousarray(values.transpose(2, 0, 1))
    return pixels, ImageInfo(path, (pixels.shape[-2], pixels.shape[-1]), said)


def _needs_tifffile(path: Path, channels: int, limits: tuple[float, float] | None) -> bool:
    """Whether Pillow does not read such a TIFF, or would not give all bits of its colors, which a range is of."""
    if channels not in MODES:
        return True
    try:
        with Image.open(path) as image:
            bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
            return limits is not None and len(bits) > 1 and max(bits) > 8
    except UnidentifiedImageError:
        return True
    except Exception:  # such as one that is cut short: what is wrong is said when it is read
        return False


def _deep_png(path: Path) -> bool:
    """Whether a PNG has colors of 16 bits: Pillow gives 8 of them, and says nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False
    return head[:8] == _PNG_HEAD and head[24:25] == b"\x10" and head[25:26] in _PNG_COLORS


def _is_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in _TIFF_HEADS
    except OSError:
        return False


def _array(path: Path, channels: int) -> NDArray[Any]:
    """(H, W, channels) of a .npy file."""
    try:
        values = load_array(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy array ({error})", FETCH_AGAIN) from error
    return _channels_last(values, channels, path)


def _tiff(path: Path, channels: int) -> tuple[NDArray[Any], int | None]:
    """(H, W, channels) of a TIFF file, and its orientation where it says one."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: Pillow does not read a TIFF of such pixels, and tifffile is not installed",
            "pip install 'compactmtl[tiff]', or save the image as .npy",
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, values = series.axes, series.asarray()
            tag = series.pages[0].tags.get("Orientation")  # type: ignore[union-attr]
            count = len(file.series)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises many kinds, and so does a codec that is missing
        raise DataError(f"{path}: not a whole image ({error})", FETCH_AGAIN) from error
    if count > 1:
        raise DataError(
            f"{path}: holds {count} pictures of different sizes or types",
            "save the one that is meant in a file of its own",
        )
    # A first axis of pages is one of bands where they are as many.
    if values.ndim == 3 and (axes[0] == "S" or (axes[0] in _PAGES and len(values) == channels)):
        values = values.transpose(1, 2, 0)
    orientation = None if tag is None else int(tag.value)
    said = orientation if orientation is not None and 1 <= orientation <= 8 else None
    return _channels_last(values, channels, path, first=False), said


def _channels_last(values: NDArray[Any], channels: int, path: Path, *, first: bool = True) -> NDArray[Any]:
    """The array as (H, W, channels); `first`: the channels may also come first. Raises DataError for another form."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[-1] != channels and first and len(values) == channels:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[-1] != channels or 0 in values.shape:
        raise DataError(
            f"{path}: an image of shape {tuple(values.shape)}, and not of {channels} channels",
            "set data.channels to what the files hold, or take the file out",
        )
    return values
