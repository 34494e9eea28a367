"""Softmax and sigmoid in numpy, as torch rounds them but for the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-x)), without an overflow."""
    small = np.exp(-np.abs(values))
    shares: Array = np.where(values >= 0, 1, small) / (1 + small)
    return shares


def softmax(values: Array, axis: int = -1) -> Array:
    """exp(x) / Σ exp(x) along an axis, without an overflow."""
    powers = np.exp(values - values.max(axis, keepdims=True))
    shares: Array = powers / powers.sum(axis, keepdims=True)
    return shares
