"""From the output of an instance head to instances, in numpy alone, as a deployed program would.

The format of the output and the steps are those of `instance_decoding`, which gives the same in torch.
Source: arXiv:1911.10194 (Panoptic-DeepLab), section 3.2.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.config.schema import Frozen, Share

STRIDE = 4  # pixels a cell of the output
OFFSET_UNIT = 16.0  # pixels; keeps offsets in the range of the logits beside them
EXTRA_CHANNELS = 3  # beside the class logits: center, down, right

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class DecodingOptions(Frozen):
    """How an output becomes instances."""

    threshold: Share = Field(0.1, description="least confidence of a center")
    window: Annotated[int, Field(ge=1)] = Field(
        3, description="odd; a center is the peak among so many cells a side"
    )
    limit: Annotated[int, Field(ge=1)] = Field(100, description="most instances an image")


def decode_instances_numpy(
    output: NDArray[Any], *, threshold: float = 0.1, window: int = 3, limit: int = 100
) -> tuple[Ints, Ints, Floats]:
    """The instances of one image; output (K + 4, h, w).

    Returns numbers (h * STRIDE, w * STRIDE), each pixel's instance from 1 on or 0; class indices (N,) and scores (N,)
    of instances 1..N, the best first.
    """
    output = output.astype(np.float32)
    classes = output.shape[0] - EXTRA_CHANNELS
    logits = upsample(output[:classes], STRIDE)
    labels: Ints = logits.argmax(0).astype(np.int64)
    numbers = np.zeros_like(labels)
    places, heat = _peaks(output[classes], threshold, window, limit)
    rows, columns = np.nonzero(labels)
    if len(places) == 0 or len(rows) == 0:
        return numbers, np.zeros(0, np.int64), np.zeros(0, np.float32)
    way = upsample(output[classes + 1 :], STRIDE)[:, rows, columns] * np.float32(OFFSET_UNIT)
    half = np.float32(0.5)
    votes = np.stack([rows.astype(np.float32) + half + way[0], columns.astype(np.float32) + half + way[1]], 1)
    parts = np.array_split(votes, -(-len(votes) // 16384))
    owner = np.concatenate([_nearest(part, places) for part in parts])
    label, at = labels[rows, columns], logits[:, rows, columns]
    top = at.max(0)
    certainty = 1 / np.exp(at - top).sum(0)
    counts = np.bincount(owner * classes + label, minlength=len(heat) * classes).reshape(-1, classes)
    pixels, classes_of = counts.sum(1), counts.argmax(1)
    agreed = np.where(label == classes_of[owner], certainty, 0).astype(np.float64)
    sums = np.bincount(owner, agreed, minlength=len(heat))
    scores = (heat * sums / np.maximum(pixels, 1)).astype(np.float32)
    kept = np.flatnonzero(pixels)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    number = np.zeros(len(heat), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    numbers[rows, columns] = number[owner]
    return numbers, classes_of[order].astype(np.int64) - 1, scores[order]


def _peaks(center: Floats, threshold: float, window: int, limit: int) -> tuple[Floats, Floats]:
    reach = window // 2
    padded = np.pad(center, reach, constant_values=-np.inf)
    highest = sliding_window_view(padded, (window, window)).max((2, 3))
    heat = 1 / (1 + np.exp(-center))
    rows, columns = np.nonzero((center == highest) & (heat >= threshold))
    order = np.argsort(-center[rows, columns], kind="stable")[:limit]
    rows, columns = rows[order], columns[order]
    places = (np.stack([rows, columns], 1) + 0.5).astype(np.float32) * STRIDE
    return places.astype(np.float32), heat[rows, columns].astype(np.float32)


def _nearest(votes: Floats, places: Floats) -> Ints:
    down = votes[:, None, 0] - places[None, :, 0]
    right = votes[:, None, 1] - places[None, :, 1]
    nearest: Ints = (down * down + right * right).argmin(1).astype(np.int64)
    return nearest


def upsample(value: Floats, factor: int) -> Floats:
    """Bilinear, (C, h, w) to (C, h * factor, w * factor), pixel centers aligned."""
    for axis in (1, 2):
        count = value.shape[axis]
        places = (np.arange(count * factor, dtype=np.float32) + np.float32(0.5)) / np.float32(factor)
        places = (places - np.float32(0.5)).clip(0, count - 1)
        low = np.floor(places).astype(np.int64)
        share = (places - low).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        near, far = value.take(low, axis), value.take(np.minimum(low + 1, count - 1), axis)
        value = near + (far - near) * share
    return value
