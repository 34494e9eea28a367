"""Draw samples: one strip of input, target and predictions, for reports, READMEs and `predict`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from compactmtl.errors import MissingDependencyError
from compactmtl.report.samples import Picture, SampleView, View

_INK = (32, 36, 44)
_SOFT = (96, 104, 116)
_PAPER = (255, 255, 255)


def png(picture: Picture) -> bytes:
    """An (H, W, 3) uint8 picture as PNG bytes, the same on every run."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(picture: Picture) -> str:
    """An (H, W, 3) uint8 picture as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def comparison_strip(samples: Sequence[SampleView], *, tile: int = 192, gap: int = 6) -> Image.Image:
    """One picture of all samples: a row a sample and map task, columns input, target and each prediction.

    Tasks of one value an image are in words in the row's cells, under one another. `tile` is the width of
    a cell in pixels; heights follow the images' aspect. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("a comparison strip needs at least one sample")
    labels = _labels(samples)
    has_target = any(task.target is not None for sample in samples for task in sample.tasks)
    headings = ["input"] + (["target"] if has_target else []) + labels
    small, bold = _font(max(11, tile // 15)), _font(max(12, tile // 13), bold=True)
    heading_height = int(bold.size * 1.9)
    rows = [row for sample in samples for row in _rows(sample, labels, has_target)]
    gutter = int(small.size * 1.6) if any(row.task for row in rows) else 0
    heights = [_row_height(row.cells, tile, small) for row in rows]
    width = gutter + gap + (tile + gap) * len(headings)
    strip = Image.new("RGB", (width, heading_height + sum(height + gap for height in heights)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for column, heading in enumerate(headings):
        text = _fit(draw, heading, bold, tile)
        left = gutter + gap + column * (tile + gap) + (tile - draw.textlength(text, font=bold)) / 2
        draw.text((left, heading_height * 0.22), text, font=bold, fill=_INK)
    top = heading_height
    for row, height in zip(rows, heights, strict=True):
        if row.task:
            _draw_sideways(strip, row.task, (0, top), (gutter, height), small)
        for column, cell in enumerate(row.cells):
            left = gutter + gap + column * (tile + gap)
            _draw_cell(strip, draw, cell, (left, top), (tile, height), small)
        top += height + gap
    return strip


@dataclass(frozen=True)
class _Row:
    """A row of the strip: the map task's name, none for words, and the cells from the input on."""

    task: str
    cells: tuple[View | None, ...]


def _labels(samples: Sequence[SampleView]) -> list[str]:
    labels: dict[str, None] = {}
    for sample in samples:
        for task in sample.tasks:
            labels.update(dict.fromkeys(task.predictions))
    return list(labels)


def _rows(sample: SampleView, labels: Sequence[str], has_target: bool) -> list[_Row]:
    """Cells of one sample: a row for every map task, or one row of words where there is none."""
    dense = [task for task in sample.tasks if task.dense]
    words = [_words(sample, None)] if has_target else []
    words += [_words(sample, label) for label in labels]
    if not dense:
        return [_Row("", (View(sample.image), *(View(None, text) for text in words)))]
    rows = []
    for index, task in enumerate(dense):
        cells: list[View | None] = [task.target] if has_target else []
        cells += [task.predictions.get(label) for label in labels]
        if index == 0:
            cells = [_with_words(cell, text) for cell, text in zip(cells, words, strict=True)]
        rows.append(_Row(task.task, (View(sample.image) if index == 0 else None, *cells)))
    return rows


def _words(sample: SampleView, label: str | None) -> str:
    """The tasks of single values of one column, a line each; the target's for None."""
    valued = [task for task in sample.tasks if not task.dense]
    values = [(task.task, task.target if label is None else task.predictions.get(label)) for task in valued]
    return "\n".join(f"{name}: {value.text}" for name, value in values if value is not None)


def _with_words(cell: View | None, words: str) -> View | None:
    if not words:
        return cell
    if cell is None:
        return View(None, words)
    return View(cell.picture, "\n".join(filter(None, (cell.text, words))))


def _row_height(row: Sequence[View | None], tile: int, font: ImageFont.FreeTypeFont) -> int:
    height = 0
    for cell in row:
        if cell is None:
            continue
        picture = 0 if cell.picture is None else round(tile * cell.picture.shape[0] / cell.picture.shape[1])
        height = max(height, picture + _text_height(cell.text, font))
    return height


def _text_height(text: str, font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * (0.5 + 1.35 * (text.count("\n") + 1))) if text else 0


def _draw_cell(
    strip: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: View | None,
    corner: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    if cell is None:
        return
    left, top = corner
    if cell.picture is not None:
        picture = Image.fromarray(np.ascontiguousarray(cell.picture))
        height = round(size[0] * picture.height / picture.width)
        strip.paste(picture.resize((size[0], height), _resampling(picture, size[0])), (left, top))
        top += height
    elif cell.text:
        top += max(0, (size[1] - _text_height(cell.text, font)) // 2)
    for number, line in enumerate(cell.text.splitlines()):
        y = top + font.size * (0.3 + 1.35 * number)
        draw.text((left + 4, y), _fit(draw, line, font, size[0] - 8), font=font, fill=_SOFT)


def _draw_sideways(
    strip: Image.Image,
    text: str,
    corner: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Text that reads upward, in the middle of a box."""
    label = Image.new("RGB", (size[1], size[0]), _PAPER)
    draw = ImageDraw.Draw(label)
    fitted = _fit(draw, text, font, size[1])
    draw.text(
        ((size[1] - draw.textlength(fitted, font=font)) / 2, font.size * 0.2), fitted, font=font, fill=_SOFT
    )
    strip.paste(label.transpose(Image.Transpose.ROTATE_90), corner)


def _resampling(picture: Image.Image, width: int) -> Image.Resampling:
    """Crisp pixels where a small picture grows, smooth ones where a large picture shrinks."""
    return Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's own DejaVu Sans: the same glyphs on every machine.

    Raises MissingDependencyError where the installation lacks it.
    """
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    try:
        return ImageFont.truetype(str(path), size)
    except (OSError, ImportError) as error:  # no such file, or a Pillow without FreeType
        raise MissingDependencyError(
            f"{path}: the font for pictures cannot be read: {error}",
            "install matplotlib and Pillow again: pip install --force-reinstall matplotlib pillow",
        ) from error
