"""Targets and predictions as (H, W, 3) uint8 pictures: class colors, distance scale, normals, boundaries, words."""

from __future__ import annotations

import base64
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
# 256 colors of matplotlib's magma (CC0) from bright to dark, without the ends that are like paper and like IGNORED,
# as base85 of the RGB bytes: drawing a prediction takes no plotting library.
MAGMA = (
    "{Pec`^tSx+wEXb0{O+*)?5_Rmto`Y#{pYFu=c)bWr~Tul{o<qj;GzBAp#9vQ{oJ1Y+MNE_n*P_B{?(WM)0O_wl>X6_{?C&B&"
    "5-`gkN(Py{>Y5}#)|&Li2lTg{=$d;!G-?6g#NvP{=0$xxqtq-fBv_A{<eJnw0r)tdj7C@{;qfau6O>dcK)h#{;6~Rr*i(Kas"
    "H!k{-JLEp>F=4ZT_8X{hMq3nri)+Y5kUH{g!C`lxO{tX8e$4{ElS&jAQ(YV*H9?{E1=vhhh7LVEcn#`hj2ie_r~1Uiy7r`Fm"
    "aYd0qK<UHEof_;g(Na$NUvT=#HX_HJDEY+UtgT=Z#N^k-c3XI%4TT=HaG@?u@_U|sNEUhiFA?pt2&TVCy2U+h?5>sMgvR$=K"
    ">V(3$1=u=|nQe)*%WaLj|<4$GbO=jRsXW&d{-%4oSNod?iY1>C?*+y&FMQqqbY}Q3=)kJO6LvGSSZ_q(+&p>d^Kyl4Lam+t)"
    "%06<)K6A%CbHzM##5{GxJaxi5b-+4yzdColId{A{c)B=vx;S{aH+i==d9^lrvo?CNHG8l%d#*Hlt~7hCG<>Twe5x~js4{(~F"
    "@2>mex)&fqcDD<Fn*vff1WRYoGyQxE`OUYf0-?Sm@R;oEP#|OfRihLkt>0aDuIwHfsQJHj46SODS?S7frux8h9`lBCxL_}fr"
    "BQ2fhB=}C4zn=f_x)_d?SK;BZ7G%f_Nf<b|HavA%SxsfpQ;#avy<kAAxQjfo&auYaM}V9D!&YfoL3oXB&WJ8h~UPfMOYdU>J"
    "a37=K?Fe_a=UTo!*?7JgY3epeNKRup|y6Ma+@eNq#AQ4)Ml5_?V&drT2}N)UNU5P3-uct;R;MG$vH4|YNibwCevKo4|34{|*"
    "ZaXSxiIS+0)5NtLOYcvpPG!SVs5N9zFWiJt9EfHZX5nn11Tq+S<DG^#H5?Cb?RU{HqA`ws_5l$fyP9PCW9uY|$5l0*lL>dr6"
)


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
    """The 256 colors of MAGMA, (256, 3)."""
    table = np.frombuffer(base64.b85decode(MAGMA), np.uint8).reshape(
        256, 3
    )  # from bytes: it can't be written to
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


def instances_picture(value: NDArray[Any], classes: int) -> NDArray[np.uint8]:
    """Instances (2, H, W) in their classes' colors, each with a white edge; crowds near black, the rest light gray."""
    numbers, labels = value
    picture = mask_picture(np.where(numbers > 0, labels, -1), classes)
    picture[numbers == 0] = (232, 232, 232)
    edge = np.zeros(numbers.shape, bool)
    edge[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
    edge[1:] |= numbers[1:] != numbers[:-1]
    picture[edge & (numbers > 0)] = (255, 255, 255)
    return picture


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
