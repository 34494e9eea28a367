"""Where the pixels of a picture come from that is turned about the optical axis, and the values there."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def places(
    size: tuple[int, int],
    angle: float,
    scale: float = 1.0,
    translate: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """For each pixel of a picture of `size` (H, W) the row and column that it shows, float64 (H, W) both.

    The picture is turned clockwise by `angle` degrees and enlarged by `scale` about `center` (x, y), by default its
    middle, and then moved by `translate` (x, y), as torchvision's `affine` does. Pixel centers have whole numbers.
    """
    height, width = size
    middle_x, middle_y = (width / 2, height / 2) if center is None else center
    # From the middle of the picture that is seen to the middle of the one that it was.
    x = torch.arange(width, dtype=torch.float64)[None, :] + 0.5 - middle_x - translate[0]
    y = torch.arange(height, dtype=torch.float64)[:, None] + 0.5 - middle_y - translate[1]
    cosine, sine = cosine_and_sine(angle)
    columns = (cosine * x + sine * y) / scale + middle_x - 0.5
    rows = (cosine * y - sine * x) / scale + middle_y - 0.5
    return rows, columns


def cosine_and_sine(angle: float) -> tuple[float, float]:
    """Of an angle in degrees, exact for quarters of a turn."""
    quarters = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    turn = angle % 360
    return quarters.get(turn, (math.cos(math.radians(turn)), math.sin(math.radians(turn))))


def nearest(value: Tensor, rows: Tensor, columns: Tensor, fill: float | None = 0) -> Tensor:
    """The nearest pixels of `value` (..., H, W) at these places (h, w): (..., h, w).

    Outside of the picture there is `fill`, or its border repeated where that is none.
    """
    height, width = value.shape[-2:]
    row, column = rows.round().long(), columns.round().long()
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    values = value.flatten(-2)[..., index]
    if fill is not None:
        outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        values.masked_fill_(outside, fill)
    return values


def bilinear(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (..., H, W) at these places (h, w), the border repeated outside: uint8 (..., h, w)."""
    height, width = image.shape[-2:]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    top, left = rows.floor().long(), columns.floor().long()
    bottom, right = (top + 1).clamp_max(height - 1), (left + 1).clamp_max(width - 1)
    down, along = (rows - top).to(torch.float32), (columns - left).to(torch.float32)
    flat = image.flatten(-2).to(torch.float32)
    upper = torch.lerp(flat[..., top * width + left], flat[..., top * width + right], along)
    lower = torch.lerp(flat[..., bottom * width + left], flat[..., bottom * width + right], along)
    return torch.lerp(upper, lower, down).round_().to(torch.uint8)
