"""What a bundle's model file takes and gives, in arrays: pictures in, raw outputs back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.data.images import normalize_array
from compactmtl.tasks.postprocess import POSTPROCESS

Arrays = Mapping[str, NDArray[Any]]


def feed(image: NDArray[np.uint8], preprocessing: Preprocessing, *, baked: bool) -> NDArray[Any]:
    """One image, uint8 (C, H, W), as the file takes it.

    Where preprocessing is baked into the file, uint8 (1, H, W, C); else normalized float32 (1, C, H, W).
    """
    if baked:
        return np.ascontiguousarray(image.transpose(1, 2, 0)[None])
    return normalize_array(image[None], preprocessing)


def feed_all(values: Arrays, rules: Mapping[str, Rule], *, baked: bool) -> dict[str, NDArray[Any]]:
    """The inputs of one sample by name as the file takes them: pictures as `feed`, vectors float32 (1, n)."""
    fed: dict[str, NDArray[Any]] = {}
    for name, rule in rules.items():
        value = values[name]
        if isinstance(rule, Vector):
            mean, std = np.array(rule.mean, np.float32), np.array(rule.std, np.float32)
            fed[name] = (value if baked else (value - mean) / std)[None].astype(np.float32)
        else:
            fed[name] = feed(value, rule, baked=baked)
    return fed


def restore(output: NDArray[Any], after: str | None, channels: int) -> NDArray[Any]:
    """The file's output as a raw output that decodes to the same; `after` is what was put behind it."""
    return output if after is None else POSTPROCESS[after].restore_array(output, channels)
