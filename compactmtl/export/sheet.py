"""A sheet for one image: the input beside each task's picture, with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from compactmtl.data.fit import as_rgb
from compactmtl.export.predict import Prediction
from compactmtl.tasks.base import Legend, Task

LEAST_HEIGHT = (
    256  # pixels of a panel; smaller images are enlarged by whole numbers, so that pixels stay visible
)
MARGIN = 12
FONT_SIZE = 16
LINE = 22
SWATCH = 12
INK, PAPER = (24, 24, 27), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """A picture with its title and the lines of its legend, each with a color or none."""

    title: str
    picture: Image.Image
    legend: Legend = ()


def sheet(
    image: NDArray[np.uint8], predictions: Sequence[Prediction], tasks: Mapping[str, Task]
) -> Image.Image:
    """Compose the picture of one image, uint8 (C, H, W): maps as panels, single values as lines below the input."""
    single = [one for one in predictions if not tasks[one.task].dense]
    lines = tuple((None, f"{one.task}: {line(one)}") for one in single)
    panels = [Panel("input", _enlarge(np.ascontiguousarray(as_rgb(image).transpose(1, 2, 0))), lines)]
    for one in predictions:
        task = tasks[one.task]
        if task.dense:
            panels.append(Panel(one.task, _enlarge(task.picture(one.value)), task.legend(one.value)))
    return _draw(panels)


def line(prediction: Prediction) -> str:
    """A single value in words, with the probability of a class."""
    share = prediction.probabilities.get(prediction.caption)
    return prediction.caption if share is None else f"{prediction.caption} ({share:.0%})"


def map_lines(prediction: Prediction, task: Task) -> list[str]:
    """A map in a few figures, as beside its picture: the largest classes' shares, the range of a depth; none of normals."""
    return [text for _, text in task.legend(prediction.value)]


def _enlarge(pixels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(pixels)
    factor = max(1, -(-LEAST_HEIGHT // picture.height))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _draw(panels: Sequence[Panel]) -> Image.Image:
    font: Any = ImageFont.load_default(FONT_SIZE)
    widths = [_width(panel, font) for panel in panels]
    tallest = max(panel.picture.height for panel in panels)
    below = max(len(panel.legend) for panel in panels) * LINE
    width = sum(widths) + MARGIN * (len(panels) + 1)
    canvas = Image.new(
        "RGB", (width, 2 * MARGIN + LINE + tallest + (MARGIN // 2 + below if below else 0)), PAPER
    )
    draw = ImageDraw.Draw(canvas)
    left = MARGIN
    for panel, panel_width in zip(panels, widths, strict=True):
        draw.text((left, MARGIN), panel.title, fill=INK, font=font)
        canvas.paste(panel.picture, (left, MARGIN + LINE))
        top = MARGIN + LINE + tallest + MARGIN // 2
        for color, text in panel.legend:
            if color is not None:
                draw.rectangle((left, top + 3, left + SWATCH, top + 3 + SWATCH), fill=color, outline=INK)
            draw.text((left + (0 if color is None else SWATCH + 8), top), text, fill=INK, font=font)
            top += LINE
        left += panel_width + MARGIN
    return canvas


def _width(panel: Panel, font: Any) -> int:
    texts: list[float] = [font.getlength(panel.title)]
    texts += [font.getlength(text) + (0 if color is None else SWATCH + 8) for color, text in panel.legend]
    return max(int(panel.picture.width), round(max(texts)))
