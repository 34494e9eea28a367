"""Targets and predictions as (H, W, 3) uint8 pictures: class colors, distance scale, normals, boundaries, words."""

from __future__ import annotations

import colorsys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

# Hand-picked so that neighbors in a list of classes stay apart in hue and in lightness.
FIRST_COLORS = (
    (78, 121, 167),
    (242, 187, 107),
    (196, 214, 206),
    (225, 87, 89),
    (89, 161, 79),
    (176, 122, 161),
    (156, 117, 95),
    (118, 183, 178),
    (255, 157, 167),
    (237, 201, 72),
    (60, 80, 105),
    (140, 209, 125),
)
IGNORED = (24, 24, 27)  # near black: no class has it
MARKED = (38, 70, 140)
GOLDEN_RATIO = 0.618033988749895


@cache
def palette(classes: int) -> Picture:
    """One color a class, (K, 3): the first twelve picked by hand, the others spread over the hues."""
    colors = list(FIRST_COLORS[:classes])
    for index in range(len(colors), classes):
        hue = (index * GOLDEN_RATIO) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.45 + 0.15 * (index % 3), 0.95 - 0.2 * (index % 2))
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    table = np.array(colors, dtype=np.uint8)
    table.setflags(write=False)
    return table


def mask_picture(mask: NDArray[Any], classes: int) -> Picture:
    """Class indices (H, W) in the palette's colors; what is no class (ignored) is near black."""
    table = np.concatenate([palette(classes), np.array([IGNORED], dtype=np.uint8)])
    valid = (mask >= 0) & (mask < classes)
    picture: Picture = table[np.where(valid, mask, classes)]
    return picture


@cache
def _scale_colors() -> Picture:
    """256 colors of matplotlib's magma from bright to dark, without the ends that are like paper and like IGNORED."""
    from matplotlib import colormaps

    table = (colormaps["magma_r"](np.linspace(0.02, 0.88, 256))[:, :3] * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


def depth_picture(depth: NDArray[Any], reference: NDArray[Any] | None = None) -> Picture:
    """Depth (1, H, W) or (H, W), near bright and far dark; unknown (0 or not finite) is near black.

    The scale runs from the least to the greatest known depth of `reference`, or of `depth` where there is none.
    """
    return _positive_picture(depth, reference, _scale_colors())


def disparity_picture(disparity: NDArray[Any], reference: NDArray[Any] | None = None) -> Picture:
    """Disparity as `depth_picture` shows depth: near is bright, which here is the greatest value."""
    return _positive_picture(disparity, reference, _scale_colors()[::-1])


def _positive_picture(value: NDArray[Any], reference: NDArray[Any] | None, colors: Picture) -> Picture:
    value = np.asarray(value, dtype=np.float64).reshape(value.shape[-2:])
    scale = value if reference is None else np.asarray(reference, dtype=np.float64)
    known_scale = scale[np.isfinite(scale) & (scale > 0)]
    known = np.isfinite(value) & (value > 0)
    low, high = (known_scale.min(), known_scale.max()) if known_scale.size else (0.0, 1.0)
    share = (np.where(known, value, low) - low) / max(high - low, 1e-12)
    picture: Picture = colors[(share.clip(0, 1) * 255).round().astype(np.int64)]
    picture[~known] = IGNORED
    return picture


def probability_picture(probability: NDArray[Any]) -> Picture:
    """Probabilities (H, W) from white (0) to dark blue (1); what is not finite (unknown) is near black."""
    known = np.isfinite(probability)
    share = np.where(known, probability, 0).clip(0, 1)[..., None]
    picture: Picture = ((1 - share) * 255 + share * np.array(MARKED)).round().astype(np.uint8)
    picture[~known] = IGNORED
    return picture


def normals_picture(normals: NDArray[Any]) -> Picture:
    """Unit normals (3, H, W) as (n + 1) / 2 in red, green and blue; unknown (0) is near black."""
    normals = np.asarray(normals, dtype=np.float64)
    # y points down and z away from the viewer: with both turned, a wall facing the viewer has the usual light blue.
    shown = normals * np.array([1, -1, -1], dtype=np.float64)[:, None, None]
    picture: Picture = np.moveaxis(((shown + 1) / 2).clip(0, 1) * 255, 0, -1).round().astype(np.uint8)
    picture[~(normals != 0).any(0)] = IGNORED
    return picture


def value_text(value: float, unit: str) -> str:
    """A number with its unit, such as "31.2 years"; "unknown" where it is not finite."""
    return f"{value:.1f} {unit}".rstrip() if np.isfinite(value) else "unknown"


def text_picture(text: str, size: tuple[int, int] = (96, 192)) -> Picture:
    """A card of `size` (H, W) with one line of text, as large as fits up to a third of the height."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    card = Image.new("RGB", (width, height), (250, 250, 250))
    draw = ImageDraw.Draw(card)
    points = max(height // 3, 8)
    while points > 8 and draw.textlength(text, font=ImageFont.load_default(points)) > 0.92 * width:
        points -= 2
    font = ImageFont.load_default(points)
    draw.text((width / 2, height / 2), text, fill=(30, 30, 35), font=font, anchor="mm")
    return np.asarray(card, dtype=np.uint8).copy()
