"""A sheet for one image: the input beside each task's picture, with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from compactmtl.export.predict import Prediction
from compactmtl.tasks.base import Task

LEAST_HEIGHT = (
    256  # pixels of a panel; smaller images are enlarged by whole numbers, so that pixels stay visible
)
MARGIN = 12
FONT_SIZE = 16
LINE = 22
INK, PAPER = (24, 24, 27), (255, 255, 255)


def sheet(
    image: NDArray[np.uint8], predictions: Sequence[Prediction], tasks: Mapping[str, Task]
) -> Image.Image:
    """Compose the picture of one image, uint8 (3, H, W): maps as panels, single values as lines below the input."""
    panels = [("input", np.ascontiguousarray(image.transpose(1, 2, 0)))]
    lines = []
    for prediction in predictions:
        task = tasks[prediction.task]
        if task.dense:
            panels.append((prediction.task, task.picture(prediction.value)))
        else:
            lines.append(f"{prediction.task}: {line(prediction)}")
    return _draw([(title, _enlarge(pixels)) for title, pixels in panels], lines)


def line(prediction: Prediction) -> str:
    """A single value in words, with the probability of a class."""
    share = prediction.probabilities.get(prediction.caption)
    return prediction.caption if share is None else f"{prediction.caption} ({share:.0%})"


def _enlarge(pixels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(pixels)
    factor = max(1, -(-LEAST_HEIGHT // picture.height))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _draw(panels: Sequence[tuple[str, Image.Image]], lines: Sequence[str]) -> Image.Image:
    font: Any = ImageFont.load_default(FONT_SIZE)
    widths = [max(picture.width, round(font.getlength(title))) for title, picture in panels]
    text_width = max((round(font.getlength(text)) for text in lines), default=0)
    width = max(sum(widths) + MARGIN * (len(panels) - 1), text_width) + 2 * MARGIN
    tallest = max(picture.height for _, picture in panels)
    height = 2 * MARGIN + LINE + tallest + (LINE * len(lines) + MARGIN // 2 if lines else 0)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for (title, picture), panel_width in zip(panels, widths, strict=True):
        draw.text((left, MARGIN), title, fill=INK, font=font)
        canvas.paste(picture, (left, MARGIN + LINE))
        left += panel_width + MARGIN
    top = MARGIN + LINE + tallest + MARGIN // 2
    for index, text in enumerate(lines):
        draw.text((MARGIN, top + index * LINE), text, fill=INK, font=font)
    return canvas
