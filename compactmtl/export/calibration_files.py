"""Calibration data in files: pictures, or arrays as .npy and .npz, for a model of which only its inputs are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.artifacts.arrays import load_arrays
from compactmtl.backends.base import TensorInfo
from compactmtl.data.base import Preprocessing
from compactmtl.data.images import normalize_array, read_image
from compactmtl.data.pixels import native
from compactmtl.errors import DataError

ARRAYS = (".npy", ".npz")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def batches_in(
    place: Path, inputs: Sequence[TensorInfo], images: Preprocessing | None, samples: int
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of all inputs, in the model's order, from a file or from those of a folder.

    An .npz holds the inputs by name, batch first; an .npy one input. A folder holds such files, or pictures, of which
    `samples` are read, evenly spread over their names; `images` says how a picture becomes the input.

    Raises DataError where there is nothing to read, a file is damaged or lacks an input, or nobody said what becomes of
    pictures.
    """
    if not place.exists():
        raise DataError(f"{place}: there is no such file or folder", "name calibration data")
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    arrays = [file for file in files if file.suffix.lower() in ARRAYS]
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    if arrays and pictures:
        raise DataError(
            f"{place} holds arrays ({arrays[0].name}) and pictures ({pictures[0].name})",
            "name a folder of either",
        )
    if pictures:
        if images is None:
            raise DataError(
                f"{place} holds pictures, and nobody said how they become the input",
                "say what is subtracted and divided by, of values of 0 to 1: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            )
        count = min(samples, len(pictures))
        for index in range(count):
            picture = read_image(pictures[index * len(pictures) // count], images.fit)
            yield (torch.from_numpy(normalize_array(picture[None], images)),)
        return
    if not arrays:
        raise DataError(
            f"{place} holds neither pictures nor {' or '.join(ARRAYS)} files",
            f"give pictures ({', '.join(PICTURES[:3])}, …) or arrays",
        )
    for file in arrays:
        yield _read(file, inputs)


def _read(file: Path, inputs: Sequence[TensorInfo]) -> tuple[Tensor, ...]:
    """The inputs that a file of arrays holds."""
    try:
        found = load_arrays(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} can't be read: {error}", "save it with numpy.save or numpy.savez") from error
    held = found if isinstance(found, dict) else {inputs[0].name: found}
    lacking = [one.name for one in inputs if one.name not in held]
    if lacking:
        raise DataError(
            f"{file} holds {', '.join(held) or 'nothing'}, and not {', '.join(lacking)}",
            "numpy.savez(file, **{name: array, …}) with every input of the model by name, batch first",
        )
    arrays = [_batched(held[one.name], one) for one in inputs]
    for one, array in zip(inputs, arrays, strict=True):
        if 0 in array.shape:
            raise DataError(f"{file}: {one.name} has the shape {array.shape} and no value", "give samples")
    return tuple(torch.from_numpy(array) for array in arrays)


def _batched(array: NDArray[Any], info: TensorInfo) -> NDArray[Any]:
    """An array of one sample gets a batch of one."""
    single = info.shape is not None and array.ndim == len(info.shape) - 1
    return np.ascontiguousarray(native(array[None] if single else array))
