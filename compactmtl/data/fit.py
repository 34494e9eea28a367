"""How an image and its maps get the network's size and channels: one rule for training, prediction and bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compactmtl.errors import DataError
from compactmtl.tasks.placement import Placement, Resize, Size, nearest

PADDED = 255  # what a mask without an ignore index of its own holds where nothing is known


@dataclass(frozen=True)
class Fit:
    """To `size` (height, width) and `channels`, as `how` says.

    `fill` is what the padding of a letterbox holds, by channel. `range` are the values of a file of more than 8 bits that
    become 0 and 255 (`pixels.to_8_bits`).
    """

    size: Size
    how: Resize = "stretch"
    channels: int = 3
    fill: tuple[int, ...] = (0, 0, 0)
    range: tuple[float, float] | None = None

    def placement(self, image: Size) -> Placement:
        """Where an image of this (height, width) lies on the network's picture."""
        return Placement.of(self.how, image, self.size)

    def picture(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (channels, h, w) at the network's size, with an antialiased bilinear filter."""
        place = self.placement((pixels.shape[-2], pixels.shape[-1]))
        fill = np.array(self.fill, np.uint8).reshape(-1, 1, 1)
        return np.ascontiguousarray(place.put(scaled(pixels, place.scaled), fill))

    def rgb(self, pixels: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """As `picture`, of RGB (3, h, w) that a data set has as arrays; gray where one channel is asked for.

        Raises DataError, naming `where`, for another number of channels.
        """
        if self.channels == 1:
            gray = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L")
            pixels = np.asarray(gray, np.uint8)[None]
        elif self.channels != 3:
            raise DataError(
                f"{where}: has 3 channels, data.channels is {self.channels}", "set data.channels to 3 or 1"
            )
        return self.picture(pixels)

    def map(self, values: NDArray[Any], unknown: Any = 0, of: Size | None = None) -> NDArray[Any]:
        """A map (..., h, w) at the network's size: no value is a mixture of two pixels, and padding is `unknown`.

        `of` is the size of its image, where the map may be a larger or smaller one of the same shape. A type that has no
        such value as `unknown` becomes the next that has it: uint8 padded with -1 is int16.
        """
        place = self.placement(of or (values.shape[-2], values.shape[-1]))
        if not place.whole:
            values = _holding(values, unknown)
        return np.ascontiguousarray(place.put(nearest(values, place.scaled), unknown))


def _holding(values: NDArray[Any], unknown: Any) -> NDArray[Any]:
    """The values in their own type where that has the value `unknown`, else in the smallest that has both."""
    with np.errstate(all="ignore"):
        held = np.asarray(unknown).astype(values.dtype)
    if np.array_equal(held, unknown, equal_nan=values.dtype.kind == "f"):
        return values
    return values.astype(np.promote_types(values.dtype, np.min_scalar_type(unknown)))


def fit_to(size: Size | Fit) -> Fit:
    """A size alone is stretched to, in RGB."""
    return size if isinstance(size, Fit) else Fit(size)


def scaled(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """uint8 (C, h, w) stretched to `size`, antialiased and bilinear; each channel on its own, alpha like the others."""
    if pixels.shape[-2:] == size:
        return pixels
    if len(pixels) == 3:
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return np.asarray(_resized(picture, size), np.uint8).transpose(2, 0, 1)
    return np.stack([np.asarray(_resized(Image.fromarray(band), size), np.uint8) for band in pixels])


def as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (C, H, W) as RGB (3, H, W) for people to look at: the first three channels, or the first one as gray."""
    return pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)


def _resized(picture: Image.Image, size: Size) -> Image.Image:
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
