"""A picture file as 8-bit RGB, upright: one rule for each of Pillow's modes, or a refusal that names the mode.

- 8-bit modes, palettes, 1 bit a pixel, CMYK and YCbCr: as Pillow converts them; transparency is left out, so that a
  pixel has the color that is stored, whatever lies behind it.
- 16-bit grayscale: value / 257, rounded, so that 0 to 65535 become 0 to 255; no range is guessed from the pixels.
- other modes (32-bit numbers, Lab, HSV) and files of several pictures say no one range or picture: DataError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compactmtl.errors import DataError

# What Pillow decodes without another program and by its pixels alone; a build that lacks a codec says so file by file.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".avif"),
)
FETCH_AGAIN = "remove the file or fetch it again"

_DIRECT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_IN_I = ("PNG", "PPM")  # formats of 16 bits that Pillow may open as 32-bit numbers
_ORIENTATION = 0x0112

Values = TypeVar("Values", bound=np.generic)


@dataclass(frozen=True)
class ImageInfo:
    """What a map must fit: the file of an image, its upright height and width, and the orientation in its EXIF."""

    path: Path
    size: tuple[int, int]
    orientation: int | None = None


@contextmanager
def opened(path: Path, missing: str, folder: str = "name an image file in it") -> Iterator[Image.Image]:
    """The image file, its header read. Raises DataError for whatever goes wrong with it, naming the file.

    `missing` is the mend where there is no such file.
    """
    try:
        # From an open file: by its name Pillow maps an uncompressed TIFF that is to be turned with its sides exchanged.
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", missing) from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a folder, not an image", folder) from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", "make the file readable") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: larger than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, more than is decoded",
            "cut it into parts, or make it smaller",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files: each is the file's fault
        raise DataError(f"{path}: not a whole image ({_reason(error)})", FETCH_AGAIN) from error


def read_rgb(path: Path, *, upright: bool = True) -> tuple[Image.Image, ImageInfo]:
    """The file as an RGB image, turned as its EXIF says unless `upright` is false.

    Raises DataError, naming the file, where it is missing, damaged, or of a mode without a rule.
    """
    with opened(path, "check the path") as image:
        one_picture(image, path)
        said, left = load(image)
        rgb = _rgb(image, path)
    if upright and left != 1:
        rgb = Image.fromarray(turned(np.asarray(rgb), left))
    return rgb, ImageInfo(path, (rgb.height, rgb.width), said)


def orientation(image: Image.Image) -> int:
    """How its EXIF says that a viewer must turn the pixels, 1 (not at all) to 8."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def load(image: Image.Image) -> tuple[int | None, int]:
    """Decode the pixels: the orientation that the EXIF says, none where it says nothing, and how much of it is left to do.

    Pillow turns a TIFF while it decodes it, and no other format.
    """
    said = orientation(image) if _ORIENTATION in image.getexif() else None
    image.load()
    return said, orientation(image)


def turned(values: NDArray[Values], orientation: int) -> NDArray[Values]:
    """(H, W, ...) as stored under an EXIF orientation, upright."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    # As the stored first row and column lie on the upright picture: bottom for 3, 4, 7, 8; right for 2, 3, 6, 7.
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def one_picture(image: Image.Image, path: Path) -> None:
    """Raise DataError for an animation or a file of several pages, of which one would have to be chosen.

    A phone's JPEG with previews behind it (MPO) is its first picture.
    """
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(
            f"{path}: holds {frames} pictures ({image.format})",
            "save the one that is meant in a file of its own",
        )


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in _DIRECT:
        # Without the entry the conversion of some palettes and grays with transparency would warn or look at it.
        image.info.pop("transparency", None)
        return image.convert("RGB")
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in _SIXTEEN_IN_I):
        gray = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    raise DataError(
        f"{path}: pixels of Pillow's mode {image.mode!r} ({image.format}), of which no range of brightness is known",
        "save it as RGB, or as grayscale of 8 or 16 bits",
    )


def _reason(error: Any) -> str:
    text = str(error)
    return "unknown format" if text.startswith("cannot identify") else text or type(error).__name__
