"""Arrays of files that come from elsewhere: no pickles, and a damaged file is an OSError, EOFError or ValueError, whatever
numpy's parsers raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 31  # bytes: an array is no larger than its file, so that of a small one cannot fill the memory


def load_array(path: Path | str, mmap_mode: Literal["r", "c"] | None = None) -> NDArray[Any]:
    """The array of a .npy file. Raises ValueError for an archive, too."""
    if mmap_mode is not None:
        with _told(path):
            return np.lib.format.open_memmap(path, mmap_mode)
    found = load_arrays(path)
    if isinstance(found, dict):
        raise ValueError("it is an archive of several arrays")
    return found


def load_arrays(path: Path | str) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a .npy file, or those of a .npz file by name."""
    # numpy leaves a file of its own open where the content is damaged
    with _told(path), Path(path).open("rb") as stream:
        found = np.load(stream, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}


@contextmanager
def _told(path: Path | str) -> Iterator[None]:
    """What parsers of headers and archives raise, as ValueError; memory that runs out on a large file stays what it is."""
    try:
        yield
    except (OSError, EOFError, ValueError):
        raise
    except MemoryError as error:
        if Path(path).stat().st_size >= _SMALL:
            raise
        raise ValueError(f"its header claims more than the file holds: {error}") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
