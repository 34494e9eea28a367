"""A disk of a test's own that can be full or read-only: a tmpfs, which root alone may mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FILLER = "filler"


class SmallDisk:
    """The disk that is mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def available(self) -> int:
        """Bytes."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, to the page."""
        self.empty()
        with (self.path / _FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.available - leave)

    def empty(self) -> None:
        """Give back what `fill` took."""
        (self.path / _FILLER).unlink(missing_ok=True)

    def read_only(self) -> None:
        """Refuse every write from now on. No file on it may be open for writing."""
        _call("mount", "-o", "remount,ro", str(self.path))

    def writable(self) -> None:
        """Undo `read_only`."""
        _call("mount", "-o", "remount,rw", str(self.path))


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk of this size at `path`, a folder that is made; the test is skipped, with the reason, where none can be mounted."""
    if not sys.platform.startswith("linux") or os.getuid() or shutil.which("mount") is None:
        pytest.skip("a small disk: only root can mount one, and on Linux")
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk: {mounted.stderr.strip() or 'mount refuses'}")
    try:
        yield SmallDisk(path)
    finally:
        _call("umount", "--lazy", str(path))  # whatever a failed test has left open


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
