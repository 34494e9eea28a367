"""Random streams by purpose and numbers, so that no stream depends on how often another was read."""

from __future__ import annotations

import zlib

import numpy as np


def generator(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for each purpose and each choice of numbers, negative ones included."""
    # Each number as its two 32-bit words: numpy pads short seeds with zeros, which would make (1, 2) and (1, 2, 0) one.
    words = [zlib.crc32(purpose.encode()), len(numbers)]
    for number in numbers:
        low = number % 2**64
        words += [low % 2**32, low >> 32]
    return np.random.default_rng(words)
