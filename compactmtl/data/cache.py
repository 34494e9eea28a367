"""Stores of decoded samples: none, in memory, or memory-mapped on disk.

A sample is a handful of arrays of fixed shape. The memory store fills as samples are asked for and is shared with
loader workers, forked or (on Linux) started anew; the disk store is built whole, under a temporary name, and appears at
once. Both are handed to another process as where they lie, never as copies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
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

from compactmtl.artifacts.arrays import load_array
from compactmtl.artifacts.files import parse_json, write_text
from compactmtl.data.memory import SharedBlock, available_memory
from compactmtl.errors import DataError

_FAILED = "failed.json"  # of a disk cache: samples that could not be made, by number, with what was wrong
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RULES = 2  # raised where the same files and settings give other arrays than before

Arrays = dict[str, NDArray[Any]]
Make = Callable[[int], Arrays]


@dataclass(frozen=True)
class Layout:
    """Shape and dtype of one array of a sample."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Store(Protocol):
    """Samples by number."""

    def read(self, index: int) -> Arrays:
        """The sample's arrays, the caller's own to change."""

    def fill(self) -> None:
        """Make every sample now, so that a damaged one fails here and not in the middle of training."""

    def column(self, name: str) -> NDArray[Any] | None:
        """One array of all samples (N, ...), not to be changed; None where they are not kept."""


class DirectStore:
    """Makes each sample anew."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def read(self, index: int) -> Arrays:
        return self._make(index)

    def fill(self) -> None:
        """Nothing is kept, so nothing is made."""

    def column(self, name: str) -> NDArray[Any] | None:
        """Nothing is kept."""
        return None


class MemoryStore:
    """Makes each sample once and keeps it in memory that workers share.

    With `skip`, `fill` leaves samples that cannot be made: each is an error where it is read. Raises DataError where the
    samples need more memory than there is.
    """

    def __init__(self, count: int, layouts: Mapping[str, Layout], make: Make, *, skip: bool = False) -> None:
        self._make, self._skip = make, skip
        self._check_room(count, layouts)
        self._blocks = {
            name: SharedBlock.new((count, *one.shape), one.dtype) for name, one in layouts.items()
        }
        # A byte a sample, written after its arrays: two workers that race write the same values.
        self._ready_block = SharedBlock.new((count,), "uint8")

    @property
    def _ready(self) -> NDArray[Any]:
        return self._ready_block.array

    def read(self, index: int) -> Arrays:
        if not self._ready[index]:
            self._put(index)
        return {name: block.array[index].copy() for name, block in self._blocks.items()}

    def column(self, name: str) -> NDArray[Any] | None:
        return self._blocks[name].array if self._ready.all() else None

    def fill(self) -> None:
        missing = np.flatnonzero(self._ready == 0).tolist()
        _for_each(self._put, missing, {} if self._skip else None)

    def _put(self, index: int) -> None:
        for name, value in self._make(index).items():
            self._blocks[name].array[index] = value
        self._ready[index] = 1

    @staticmethod
    def _check_room(count: int, layouts: Mapping[str, Layout]) -> None:
        needed = sum(count * layout.bytes for layout in layouts.values())
        there = available_memory()
        if there is not None and needed > there:
            raise DataError(
                f"data.cache: memory needs {needed / 2**30:.3g} GiB for {count} samples, and {there / 2**30:.3g} GiB "
                "are free",
                "set data.cache: disk (decoded once, memory-mapped), or none; or make data.size smaller",
            )


class DiskStore:
    """Memory-mapped .npy files, one an array, that other processes share and later runs find again.

    With `skip`, samples that cannot be made are written down, and each is tried again where it is read: what was wrong may have
    been the disk or the network. Without it one is an error when the store is opened, also where it was built before.
    """

    def __init__(
        self, folder: Path, count: int, layouts: Mapping[str, Layout], make: Make, *, skip: bool = False
    ) -> None:
        if not folder.is_dir():
            _build(folder, count, layouts, make, skip=skip)
        self._folder, self._count, self._layouts = folder, count, dict(layouts)
        self._arrays = self._mapped()
        self._failed, self._make = _failed(folder), make
        for index in () if skip else sorted(self._failed):
            make(index)

    def read(self, index: int) -> Arrays:
        if index in self._failed:
            return self._make(index)
        return {name: np.array(array[index]) for name, array in self._arrays.items()}

    def fill(self) -> None:
        """Built whole when opened."""

    def column(self, name: str) -> NDArray[Any] | None:
        return None if self._failed else self._arrays[name]

    def _mapped(self) -> Arrays:
        arrays: Arrays = {}
        for name, layout in self._layouts.items():
            path = self._folder / f"{name}.npy"
            try:
                # "c": a caller may write to what it gets, and the file stays as it is.
                array = load_array(path, "c")
                if array.shape != (self._count, *layout.shape) or array.dtype != np.dtype(layout.dtype):
                    raise ValueError(f"holds {array.dtype} {array.shape}")
            except (OSError, ValueError, EOFError) as error:
                raise DataError(
                    f"{path}: not the cached samples that belong there ({error})",
                    f"remove the folder {self._folder}; it is built again",
                ) from error
            arrays[name] = array
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._mapped()


def open_store(
    mode: Literal["memory", "disk", "none"],
    count: int,
    layouts: Mapping[str, Layout],
    make: Make,
    folder: Path,
    *,
    skip: bool = False,
) -> Store:
    """The store that a recipe's `data.cache` asks for; `folder` names the disk store's contents.

    With `skip`, a sample that cannot be made is no error before it is read.
    """
    if mode == "memory":
        return MemoryStore(count, layouts, make, skip=skip)
    if mode == "disk":
        return DiskStore(folder, count, layouts, make, skip=skip)
    return DirectStore(make)


def content_key(*parts: object) -> str:
    """A short name for exactly these contents, read by today's rules."""
    text = json.dumps([_RULES, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def user_cache() -> Path:
    """The folder of the user's caches: nothing is ever written beside the data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compactmtl"


def hold_out(identifiers: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Numbers of the samples (kept, held out), both in order; the share held out is rounded, at least one each.

    Chosen by a hash of each name: a sample's side does not depend on the order of a listing, and hardly on the others.
    """
    count = len(identifiers)
    held = min(max(round(count * share), 1), count - 1) if share > 0 and count > 1 else 0
    ranked = sorted(range(count), key=lambda i: hashlib.sha256(os.fsencode(identifiers[i])).digest())
    return sorted(ranked[held:]), sorted(ranked[:held])


def _failed(folder: Path) -> dict[int, str]:
    """The samples that a disk cache lacks, each with what was wrong. Raises DataError for a damaged list of them."""
    path = folder / _FAILED
    try:
        return {int(number): str(what) for number, what in parse_json(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not the list of samples that belongs there ({error})",
            f"remove the folder {folder}; it is built again",
        ) from error


def _build(
    folder: Path, count: int, layouts: Mapping[str, Layout], make: Make, *, skip: bool = False
) -> None:
    building = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"{folder}: a disk cache cannot be written there ({error.strerror})",
            "set XDG_CACHE_HOME to a folder that can be written, or data.cache: none",
        ) from error
    needed = sum(count * one.bytes for one in layouts.values())
    try:
        arrays = _new_arrays(building, count, layouts, needed, folder)

        def put(index: int) -> None:
            for name, value in make(index).items():
                arrays[name][index] = value

        failed: dict[int, str] | None = {} if skip else None
        _for_each(put, range(count), failed)
        if failed:
            write_text(building / _FAILED, json.dumps(failed) + "\n")
        for array in arrays.values():
            array.flush()
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have built the same meanwhile
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _new_arrays(
    building: Path, count: int, layouts: Mapping[str, Layout], needed: int, folder: Path
) -> dict[str, np.memmap[Any, Any]]:
    """The mapped files of a disk cache, with their blocks set aside: writing to one on a full disk would end the process.

    Raises DataError where there is no room for the `needed` bytes.
    """
    free = shutil.disk_usage(building).free
    full = DataError(
        f"{folder}: a disk cache of {count} samples needs {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free",
        "make room, or set XDG_CACHE_HOME to a larger disk, or data.cache: none",
    )
    if needed > free:
        raise full
    arrays: dict[str, np.memmap[Any, Any]] = {}
    try:
        for name, layout in layouts.items():
            path = building / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.dtype(layout.dtype), shape=(count, *layout.shape)
            )
            if hasattr(os, "posix_fallocate"):  # macOS and Windows have none
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise full from error
    return arrays


def _for_each(
    action: Callable[[int], None], numbers: Iterable[int], failed: dict[int, str] | None = None
) -> None:
    """Run in threads, which decoding sets free; the first failure stops the rest, unless `failed` collects what data lacks."""

    def noted(number: int) -> None:
        try:
            action(number)
        except DataError as error:
            if failed is None:
                raise
            failed[number] = error.message

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
    try:
        for _ in pool.map(noted, numbers):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
