"""Stores of decoded samples: none, in memory, or memory-mapped on disk.

A sample is a handful of arrays of fixed shape. The memory store fills as samples are asked for and is shared with
forked loader workers; the disk store is built whole, under a temporary name, and appears at once.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compactmtl.errors import DataError

Arrays = dict[str, NDArray[Any]]
Make = Callable[[int], Arrays]


@dataclass(frozen=True)
class Layout:
    """Shape and dtype of one array of a sample."""

    shape: tuple[int, ...]
    dtype: str


class Store(Protocol):
    """Samples by number."""

    def read(self, index: int) -> Arrays:
        """The sample's arrays, the caller's own to change."""

    def fill(self) -> None:
        """Make every sample now, so that a damaged one fails here and not in the middle of training."""


class DirectStore:
    """Makes each sample anew."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def read(self, index: int) -> Arrays:
        return self._make(index)

    def fill(self) -> None:
        """Nothing is kept, so nothing is made."""


class MemoryStore:
    """Makes each sample once and keeps it in memory that forked workers share."""

    def __init__(self, count: int, layouts: Mapping[str, Layout], make: Make) -> None:
        self._make = make
        self._arrays = {name: _shared(count, layout) for name, layout in layouts.items()}
        # A byte a sample, written after its arrays: two workers that race write the same values.
        self._ready = _shared(count, Layout((), "uint8"))

    def read(self, index: int) -> Arrays:
        if not self._ready[index]:
            self._put(index)
        return {name: array[index].copy() for name, array in self._arrays.items()}

    def fill(self) -> None:
        missing = np.flatnonzero(self._ready == 0).tolist()
        _for_each(self._put, missing)

    def _put(self, index: int) -> None:
        for name, value in self._make(index).items():
            self._arrays[name][index] = value
        self._ready[index] = 1


class DiskStore:
    """Memory-mapped .npy files, one an array, that other processes share and later runs find again."""

    def __init__(self, folder: Path, count: int, layouts: Mapping[str, Layout], make: Make) -> None:
        if not folder.is_dir():
            _build(folder, count, layouts, make)
        self._arrays: Arrays = {}
        for name, layout in layouts.items():
            path = folder / f"{name}.npy"
            try:
                # "c": a caller may write to what it gets, and the file stays as it is.
                array = np.load(path, mmap_mode="c", allow_pickle=False)
                if array.shape != (count, *layout.shape) or array.dtype != np.dtype(layout.dtype):
                    raise ValueError(f"holds {array.dtype} {array.shape}")
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}: not the cached samples that belong there ({error})",
                    f"remove the folder {folder}; it is built again",
                ) from error
            self._arrays[name] = array

    def read(self, index: int) -> Arrays:
        return {name: np.array(array[index]) for name, array in self._arrays.items()}

    def fill(self) -> None:
        """Built whole when opened."""


def open_store(
    mode: Literal["memory", "disk", "none"],
    count: int,
    layouts: Mapping[str, Layout],
    make: Make,
    folder: Path,
) -> Store:
    """The store that a recipe's `data.cache` asks for; `folder` names the disk store's contents."""
    if mode == "memory":
        return MemoryStore(count, layouts, make)
    if mode == "disk":
        return DiskStore(folder, count, layouts, make)
    return DirectStore(make)


def content_key(*parts: object) -> str:
    """A short name for exactly these contents."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def user_cache() -> Path:
    """The folder for caches that belong to no data set's own folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compactmtl"


def hold_out(identifiers: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Numbers of the samples (kept, held out), both in order; the share held out is rounded, at least one each.

    Chosen by a hash of each name: a sample's side does not depend on the order of a listing, and hardly on the others.
    """
    count = len(identifiers)
    wanted = min(max(round(count * share), 1), count - 1) if share > 0 and count > 1 else 0
    ranked = sorted(range(count), key=lambda i: hashlib.sha256(identifiers[i].encode()).digest())
    return sorted(ranked[wanted:]), sorted(ranked[:wanted])


def _shared(count: int, layout: Layout) -> NDArray[Any]:
    shape, dtype = (count, *layout.shape), np.dtype(layout.dtype)
    size = max(int(np.prod(shape)) * dtype.itemsize, 1)
    # An anonymous map is shared over fork and, unlike torch's shared memory, not bounded by the size of /dev/shm.
    return np.frombuffer(mmap.mmap(-1, size), dtype, count=int(np.prod(shape))).reshape(shape)


def _build(folder: Path, count: int, layouts: Mapping[str, Layout], make: Make) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    building.mkdir()
    try:
        arrays = {
            name: np.lib.format.open_memmap(
                building / f"{name}.npy",
                mode="w+",
                dtype=np.dtype(layout.dtype),
                shape=(count, *layout.shape),
            )
            for name, layout in layouts.items()
        }

        def put(index: int) -> None:
            for name, value in make(index).items():
                arrays[name][index] = value

        _for_each(put, range(count))
        for array in arrays.values():
            array.flush()
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have built the same meanwhile
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _for_each(action: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Run in threads, which decoding sets free; the first failure stops the rest."""
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
    try:
        for _ in pool.map(action, numbers):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
