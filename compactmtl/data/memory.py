"""Memory that loader workers share, and how much of it is free."""

from __future__ import annotations

import math
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MEMINFO = Path("/proc/meminfo")
# (limit, use) of the control group that this process is in, as a container sees it: versions 2 and 1.
_LIMITS = (
    (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory.current"),
        Path("/sys/fs/cgroup/memory.stat"),
    ),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)


class SharedBlock:
    """One array of zeros, shared with forked processes and, on Linux, with any to which it is pickled.

    An anonymous file is, unlike torch's shared memory, not bounded by the size of /dev/shm. Where a process cannot open
    its parent's it begins with zeros of its own: a cache then fills once a worker.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, file: int | None) -> None:
        self._shape, self._dtype, self._file = shape, dtype, file
        self._owner = os.getpid()
        count = math.prod(shape)
        size = max(count * np.dtype(dtype).itemsize, 1)
        mapped = mmap.mmap(-1 if file is None else file, size)
        self.array: NDArray[Any] = np.frombuffer(mapped, dtype, count=count).reshape(shape)

    @classmethod
    def new(cls, shape: tuple[int, ...], dtype: str) -> SharedBlock:
        """Zeros."""
        return cls(shape, dtype, _anonymous_file(max(math.prod(shape) * np.dtype(dtype).itemsize, 1)))

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None and self._owner == os.getpid():
            with suppress(OSError):
                os.close(self._file)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self._shape, self._dtype, self._owner, self._file)


def _anonymous_file(size: int) -> int | None:
    """A file of `size` bytes in memory; None where there can be none, such as above the limit of a process's files."""
    if sys.platform != "linux":
        return None
    try:
        file = os.memfd_create("compactmtl")
    except OSError:
        return None
    try:
        os.ftruncate(file, size)
    except OSError:
        os.close(file)
        return None
    return file


def _attach(shape: tuple[int, ...], dtype: str, owner: int, file: int | None) -> SharedBlock:
    if file is None:
        return SharedBlock(shape, dtype, None)
    try:
        own = os.open(f"/proc/{owner}/fd/{file}", os.O_RDWR)
    except OSError:
        return SharedBlock(shape, dtype, None)
    return SharedBlock(shape, dtype, own)


def available_memory() -> int | None:
    """Bytes that can be had without swapping: of the machine and of this process's control group; None where unknown."""
    amounts: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
    for limit, used, details in _LIMITS:
        with suppress(OSError, ValueError, IndexError):
            # What is only cached of files is given back when it is asked for.
            cached = [int(line.split()[1]) for line in details.read_text().splitlines() if _is_cache(line)]
            amounts.append(max(int(limit.read_text()) - int(used.read_text()) + max(cached, default=0), 0))
    return min(amounts, default=None)


def _is_cache(line: str) -> bool:
    return line.split(" ", 1)[0] in ("inactive_file", "total_inactive_file")
