"""A vector that a network is given beside its pictures, from a file or a word of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.arrays import load_arrays
from compactmtl.errors import DataError


def read_vector(word: Path | str, count: int, name: str) -> NDArray[np.float32]:
    """The numbers of input `name`, float32 (count,): of a .npy file, or written with commas, such as 525,525,319.5,239.5.

    Raises DataError, naming the file or word, for anything but so many finite numbers.
    """
    mend = f"give {count} numbers as {name}=1.5,2,… or in a .npy file of shape ({count},)"
    try:
        if str(word).lower().endswith(".npy"):
            values = load_arrays(word)
        else:
            values = np.array([float(one) for one in str(word).split(",")])
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{word}: not the numbers of input {name!r} ({error})", mend) from error
    if isinstance(values, dict) or values.dtype.kind not in "fiu" or values.shape != (count,):
        found = "an archive" if isinstance(values, dict) else f"{values.dtype} of shape {values.shape}"
        raise DataError(f"{word}: input {name!r} has {count} numbers, found {found}", mend)
    with np.errstate(over="ignore"):  # a number beyond float32 is told as one that is not finite
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{word}: input {name!r} holds a value that is not finite", mend)
    return numbers
