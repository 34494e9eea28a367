"""Any number of samples through a model of fixed batch size. Also part of a device kit: numpy alone.

A device kit is one file for Python 3.8: this module must stay readable for it and may import nothing of the project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def in_chunks(
    run: Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]],
    arrays: dict[str, np.ndarray[Any, Any]],
    batch: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """`run` on `batch` samples at a time, along dimension 0 of inputs and outputs.

    A last chunk that is short is filled up by repeating its last sample, and the answers to the filling are cut off.
    """
    count = len(next(iter(arrays.values())))
    chunks = []
    for start in range(0, count, batch):
        chunk = {name: array[start : start + batch] for name, array in arrays.items()}
        short = batch - min(batch, count - start)
        if short:
            chunk = {
                name: np.concatenate([array, np.repeat(array[-1:], short, axis=0)])
                for name, array in chunk.items()
            }
        chunks.append({name: array[: batch - short] for name, array in run(chunk).items()})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
