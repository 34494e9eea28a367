"""Where an image lies on the network's picture: the way there and back, for pixels, maps and masks, in whole pixels.

- `stretch`: both sides are scaled on their own, so that the image fills the picture.
- `letterbox`: both sides are scaled by one factor, the largest with which the whole image fits; the rest is padding.
- `crop`: both sides are scaled by one factor, the smallest with which the image fills the picture; what is over is cut off.

The image lies in the middle. Sizes are rounded half up and places down, in integers, so that every program gets the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Resize = Literal["stretch", "letterbox", "crop"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Placement:
    """An image of `image` = (height, width) on a picture of `size`: scaled to `scaled`, its corner at (`top`, `left`).

    Of a letterbox the corner is inside the picture; of a crop it is outside, so `top` and `left` are 0 or less.
    """

    image: Size
    size: Size
    scaled: Size
    top: int = 0
    left: int = 0

    @classmethod
    def of(cls, how: Resize, image: Size, size: Size) -> Placement:
        """Where `how` puts an image."""
        (h, w), (height, width) = image, size
        wide = h * width <= w * height  # whether the width decides a letterbox
        if how == "stretch":
            return cls(image, size, size)
        if wide == (how == "letterbox"):
            scaled = (_rounded(h * width, w), width)
        else:
            scaled = (height, _rounded(w * height, h))
        if how == "crop":  # rounding leaves no gap
            scaled = (max(scaled[0], height), max(scaled[1], width))
        else:
            scaled = (min(scaled[0], height), min(scaled[1], width))
        return cls(image, size, scaled, _middle(height - scaled[0]), _middle(width - scaled[1]))

    @property
    def whole(self) -> bool:
        """Whether the image fills the picture and nothing of it is cut off."""
        return self.scaled == self.size

    @property
    def visible(self) -> tuple[slice, slice]:
        """The part of the picture that shows the image: all of it but the padding."""
        return self._windows()[0]

    def put(self, values: NDArray[Any], fill: Any) -> NDArray[Any]:
        """(..., *scaled) on the picture, (..., *size); `fill` is what padding holds, and may be an array (C, 1, 1)."""
        if self.whole:
            return values
        picture = np.empty((*values.shape[:-2], *self.size), values.dtype)
        picture[...] = fill
        there, own = self._windows()
        picture[(..., *there)] = values[(..., *own)]
        return picture

    def take(self, values: NDArray[Any], unknown: Any) -> NDArray[Any]:
        """The way back: what (..., *size) says of the image, (..., *scaled); `unknown` where it was cut off."""
        return self._uncut(values[(..., *self.visible)], unknown)

    def back(self, values: NDArray[Any], unknown: Any) -> NDArray[Any]:
        """The visible part of a map at the image's own size, (..., *image): each pixel takes the nearest one."""
        return nearest(self._uncut(values, unknown), self.image)

    def _uncut(self, values: NDArray[Any], unknown: Any) -> NDArray[Any]:
        image = np.empty((*values.shape[:-2], *self.scaled), values.dtype)
        image[...] = unknown
        image[(..., *self._windows()[1])] = values
        return image

    def inside(self) -> NDArray[np.uint8]:
        """Which pixels of the picture show the image: 1 or, of padding, 0; uint8 (*size)."""
        return self.put(np.ones(self.scaled, np.uint8), 0)

    def _windows(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part of the picture that shows the image, and the part of the scaled image that is shown."""
        there, own = [], []
        for start, length, side in zip((self.top, self.left), self.scaled, self.size, strict=True):
            low, high = max(start, 0), min(start + length, side)
            there.append(slice(low, high))
            own.append(slice(low - start, high - start))
        return (there[0], there[1]), (own[0], own[1])


def nearest(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """(..., H, W) at `size` (height, width): each new pixel takes the old one that lies under its center."""
    for axis, count in ((-2, size[0]), (-1, size[1])):
        old = values.shape[axis]
        if old != count:
            index = ((2 * np.arange(count) + 1) * old) // (2 * count)
            values = np.take(values, index, axis)
    return np.ascontiguousarray(values)


def _rounded(product: int, divisor: int) -> int:
    """The quotient as a whole number of pixels, half up, at least 1."""
    return max(1, (2 * product + divisor) // (2 * divisor))


def _middle(free: int) -> int:
    """Where a side begins of which `free` pixels are padding or, below 0, cut off."""
    return free // 2 if free >= 0 else -(-free // 2)
