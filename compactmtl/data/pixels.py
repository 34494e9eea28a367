"""A picture file that Pillow reads as 8-bit gray, RGB or RGBA, upright: one rule a mode, or a refusal that names it.

- 8-bit modes, palettes, 1 bit a pixel, CMYK and YCbCr: as Pillow converts them; transparency is left out, so that a
  pixel has the color that is stored, whatever lies behind it.
- one channel (gray): colors as Pillow weighs them, 0.299 red + 0.587 green + 0.114 blue.
- four channels (RGBA): a file without transparency is refused, since nothing says what its fourth channel would be.
- 16-bit grayscale: value / 257, rounded, so that 0 to 65535 become 0 to 255; no range is guessed from the pixels.
- with limits, as `data.range` gives them: these two become 0 and 255, in numbers of 16 and 32 bits.
- other modes (32-bit numbers without limits, Lab, HSV) and files of several pictures say no one range or picture: DataError.
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

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
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


def read_picture_file(
    path: Path,
    channels: int = 3,
    *,
    upright: bool = True,
    limits: tuple[float, float] | None = None,
) -> tuple[Image.Image, ImageInfo]:
    """The file as an image of mode L, RGB or RGBA (1, 3 or 4 channels), turned as its EXIF says unless `upright` is false.

    Raises DataError, naming the file, where it is missing, damaged, or of a mode without a rule.
    """
    with opened(path, "check the path") as image:
        one_picture(image, path)
        said, left = load(image)
        picture = _converted(image, path, channels, limits)
    if upright and left != 1:
        picture = Image.fromarray(turned(np.asarray(picture), left))
    return picture, ImageInfo(path, (picture.height, picture.width), said)


def read_picture_size(path: Path) -> ImageInfo:
    """What maps of the image must fit, from its header alone; its pixels are not decoded. Raises DataError."""
    with opened(path, "check the path") as image:
        said = orientation(image) if _ORIENTATION in image.getexif() else None
        size = (image.width, image.height) if (said or 1) >= 5 else (image.height, image.width)
        return ImageInfo(path, size, said)


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


def native(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in this machine's byte order, which files of another machine do not have."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def to_8_bits(values: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Numbers as 8 bits, rounded half up: value / 257 of 16 bits; with `limits` these two become 0 and 255.

    What lies beyond is clipped, and what is not a number becomes 0.
    """
    if limits is None:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = limits
    share = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
    return np.floor(share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _converted(
    image: Image.Image, path: Path, channels: int, limits: tuple[float, float] | None
) -> Image.Image:
    mode = MODES[channels]
    if mode == "RGBA":
        return _rgba(image, path)
    if image.mode in _DIRECT:
        # Without the entry the conversion of some palettes and grays with transparency would warn or look at it.
        image.info.pop("transparency", None)
        # A palette and what is no RGB go by way of the colors.
        return (
            image.convert("RGB").convert(mode) if image.mode not in ("1", "L", "LA") else image.convert(mode)
        )
    if image.mode in _SIXTEEN or (image.mode == "I" and image.format in _SIXTEEN_IN_I):
        return Image.fromarray(to_8_bits(np.asarray(image), limits)).convert(mode)
    if limits is not None and image.mode in ("I", "F"):
        return Image.fromarray(to_8_bits(np.asarray(image), limits)).convert(mode)
    raise DataError(
        f"{path}: pixels of Pillow's mode {image.mode!r} ({image.format}), of which no range of brightness is known",
        "save it as RGB, or as grayscale of 8 or 16 bits; of 32 bits say its range in data.range",
    )


def _rgba(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGBX":  # a fourth channel of which a TIFF says nothing
        return Image.fromarray(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA")
    raise DataError(
        f"{path}: has no fourth channel (Pillow's mode {image.mode!r})",
        "save it as RGBA, or set data.channels to 3",
    )


def _reason(error: Any) -> str:
    text = str(error)
    return "unknown format" if text.startswith("cannot identify") else text or type(error).__name__
