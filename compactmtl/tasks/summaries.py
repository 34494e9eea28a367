"""Decoded values in words and figures: captions, class shares, ranges, lists of instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.tasks.pictures import palette

LEGEND_CLASSES = 6  # the largest ones; predictions.json has all


def class_text(value: NDArray[Any], classes: Sequence[str]) -> str:
    """The class of an index; "unknown" where it is none."""
    index = int(value)
    return classes[index] if 0 <= index < len(classes) else "unknown"


def labels_text(value: NDArray[Any], classes: Sequence[str]) -> str:
    """The classes (K,) that are present (1), such as "Smiling, Young"; "none", or "unknown" where all are (-1)."""
    if (value == -1).all():
        return "unknown"
    return ", ".join(label for label, there in zip(classes, value, strict=True) if there == 1) or "none"


def value_text(value: float, unit: str) -> str:
    """A number with its unit, such as "31.2 years"; "unknown" where it is not finite."""
    return f"{value:.1f} {unit}".rstrip() if np.isfinite(value) else "unknown"


def class_shares(mask: NDArray[Any], classes: Sequence[str]) -> dict[str, float]:
    """Share of the pixels that each class covers, the largest first; absent classes are left out."""
    counts = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    return {classes[i]: float(counts[i] / mask.size) for i in order if counts[i]}


def known_range(value: NDArray[Any]) -> tuple[float, float, float]:
    """Smallest, median and largest positive value, such as a depth where it is known; zeros where there is none."""
    known = value[value > 0]
    if not known.size:
        return 0.0, 0.0, 0.0
    return float(known.min()), float(np.median(known)), float(known.max())


def list_instances(value: NDArray[Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The instances of a map (2, H, W) by number, without crowds.

    Each with its `class` by name, `box` as left, top, right and bottom edge in pixels, and its count of `pixels`.
    """
    instances: list[dict[str, Any]] = []
    for number in np.unique(value[0][value[0] > 0]).tolist():
        rows, columns = np.nonzero(value[0] == number)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        name = classes[int(value[1][rows[0], columns[0]])]
        instances.append({"class": name, "box": [int(edge) for edge in edges], "pixels": len(rows)})
    return instances


def count_instances(value: NDArray[Any], classes: Sequence[str]) -> list[tuple[str, int]]:
    """How many instances (2, H, W) there are of each class, the most first, without crowds."""
    return Counter(str(one["class"]) for one in list_instances(value, classes)).most_common()


def class_colors(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The color that pictures draw each class in."""
    return {name: tuple(color) for name, color in zip(classes, palette(len(classes)).tolist(), strict=True)}
