"""Arrays of files that come from elsewhere: no pickles, and a damaged file is an OSError, EOFError or ValueError, whatever
numpy's parsers raise."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 31  # bytes: an array is no larger than its file, so that of a small one cannot fill the memory
_DAMAGED = (tokenize.TokenError, SyntaxError, TypeError, zlib.error, NotImplementedError)


def load_array(path: Path | str, mmap_mode: Literal["r", "c"] | None = None) -> NDArray[Any]:
    """The array of a .npy file. Raises ValueError for an archive, too."""
    found = _load(path, mmap_mode)
    if isinstance(found, dict):
        raise ValueError("it is an archive of several arrays")
    return found


def load_arrays(path: Path | str) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a .npy file, or those of a .npz file by name."""
    return _load(path, None)


def _load(path: Path | str, mmap_mode: Literal["r", "c"] | None) -> NDArray[Any] | dict[str, NDArray[Any]]:
    try:
        if mmap_mode is not None:
            found: Any = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else _closed(found)
        with Path(path).open(
            "rb"
        ) as stream:  # numpy leaves a file of its own open where the content is damaged
            found = np.load(stream, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    except _DAMAGED as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except MemoryError as error:
        if Path(path).stat().st_size >= _SMALL:
            raise
        raise ValueError(f"its header claims more than the file holds: {error}") from error


def _closed(archive: Any) -> dict[str, NDArray[Any]]:
    archive.close()
    return {}
