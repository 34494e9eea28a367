"""Inputs for a model of which nothing is known but its names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.base import TensorInfo
from compactmtl.errors import ConfigError, command


def noise_for(
    inputs: Sequence[TensorInfo],
    batch: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """An array for each input: normal numbers, or whole ones from 0 to 255 for bytes and 0 to 1 for other integers.

    A free first dimension becomes `batch`; other free ones must be in `shapes`. Raises ConfigError where they aren't,
    or where a given shape doesn't fit.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in inputs:
        shape = (shapes or {}).get(tensor.name) or _shape(tensor, batch)
        dtype = np.dtype(tensor.dtype or "float32")
        if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
            arrays[tensor.name] = rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
        else:
            arrays[tensor.name] = rng.standard_normal(shape).astype(dtype)
        if wrong := tensor.mismatch(arrays[tensor.name]):
            raise ConfigError(f"input '{tensor.name}' {wrong}", _mend(tensor))
    return arrays


def _shape(tensor: TensorInfo, batch: int) -> tuple[int, ...]:
    if tensor.shape is None:
        raise ConfigError(f"the shape of input '{tensor.name}' is not known", _mend(tensor))
    first = batch if tensor.shape and tensor.shape[0] is None else None
    shape = tuple(first if first and index == 0 else size for index, size in enumerate(tensor.shape))
    if any(size is None for size in shape):
        raise ConfigError(
            f"input '{tensor.name}' has free dimensions {tensor.shape}",
            _mend(tensor),
        )
    return tuple(int(size) for size in shape if size is not None)


def _mend(tensor: TensorInfo) -> str:
    sizes = tensor.shape or (1, 3, None, None)
    free = (1, *[224] * (len(sizes) - 1))  # an example of what is open: one image of a usual size
    example = "x".join(str(size or other) for size, other in zip(sizes, free, strict=True))
    shown = command("profile", "MODEL", "--shape", f"{tensor.name}={example}")
    return f"give a shape that it takes: `{shown}`"
