"""One writer a run folder: a lock on `.lock` in it, which the operating system frees when its process ends.

POSIX record locks: they work on NFS, no child process inherits them, and a killed process leaves none. They have two
traps. They belong to the process, so threads of one would not see each other; and closing any descriptor of the file
frees them, so a process that holds one must not read the file. A table of what this process holds answers for both.
On Windows the lock is msvcrt's, which ends with its process as well.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from compactmtl.artifacts.layout import LOCK
from compactmtl.errors import ArtifactError, HeldError

_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_POLL = 0.5  # seconds between looks at a lock that is waited for
_BEYOND = 1 << 30  # the byte that Windows locks: its locks keep others from reading what they cover

F = TypeVar("F", bound=Callable[..., Any])
Key = tuple[int, int]  # device and number of the folder


@dataclass
class _Own:
    """A lock of this process: the thread that took it, how often, and what for."""

    thread: int
    purpose: str
    since: str
    depth: int = 1


_held: dict[Key, _Own] = {}
_guard = threading.RLock()


def _forget() -> None:
    """A forked child holds none of its parent's locks."""
    global _guard
    _guard = threading.RLock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def writing(folder: str | Path, purpose: str, wait: float = 0.0) -> Iterator[None]:
    """Be the only one who writes into `folder` for a while; made where it is not there, and removed again if empty.

    `purpose` is what the other is told, such as "train". The thread that holds the lock may take it again. `wait` is
    for how many seconds a lock of another is waited for.

    Raises HeldError saying who holds it and since when, ArtifactError where the file system has no locks, OSError
    where the folder cannot be written.
    """
    path = Path(folder)
    made = _make(path)
    try:
        release = _acquire(path, purpose, time.monotonic() + wait)
    except BaseException:
        _remove_empty(made)
        raise
    try:
        yield
    finally:
        release()
        _remove_empty(made)


def exclusive(purpose: str) -> Callable[[F], F]:
    """A decorator: the function is the only writer of the run that is its first argument. Raises as `writing` does."""

    def decorate(function: F) -> F:
        @wraps(function)
        def locked(run: Any, *args: Any, **kwargs: Any) -> Any:
            with writing(run.path, purpose):
                return function(run, *args, **kwargs)

        return cast(F, locked)

    return decorate


def _acquire(path: Path, purpose: str, until: float) -> Callable[[], None]:
    while True:
        try:
            with _guard:
                return _try(path, purpose)
        except HeldError:
            if time.monotonic() >= until:
                raise
            time.sleep(_POLL)


def _try(path: Path, purpose: str) -> Callable[[], None]:
    """Take the lock now; what is returned gives it back. Raises HeldError."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        held = _held.get(key)
        if held is not None:
            if held.thread != threading.get_ident():
                raise _busy(path, f"another thread of this process ({held.purpose}, since {held.since})")
            held.depth += 1
            return lambda: _give_back(key, held, path, None)
        file = path / LOCK
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # who failed at its start removed its folder meanwhile
            continue
        try:
            _lock(descriptor, file)
        except ArtifactError:
            file.unlink(missing_ok=True)  # no one can hold it here
            raise
        except OSError as error:
            if error.errno not in _BUSY:
                raise
            raise _busy(path, _holder(descriptor)) from None
        else:
            if _is_current(descriptor, file):
                own = _Own(
                    threading.get_ident(), purpose, datetime.now().astimezone().isoformat(" ", "seconds")
                )
                try:
                    _write_holder(descriptor, own)
                except OSError as error:  # on a full disk: nothing else could be written either
                    with suppress(OSError):
                        file.unlink()
                    raise OSError(error.errno, error.strerror, str(file)) from error
                _held[key] = own
                taken = descriptor
                descriptor = -1
                return lambda: _give_back(key, own, path, taken)
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _give_back(key: Key, own: _Own, path: Path, descriptor: int | None) -> None:
    with _guard:
        own.depth -= 1
        if descriptor is None:
            return
        _held.pop(key, None)
        # removed while it is held: whoever opened it before finds another file there, or none, and opens that
        if os.name != "nt":
            with suppress(OSError):
                (path / LOCK).unlink()
        os.close(descriptor)


def _is_current(descriptor: int, file: Path) -> bool:
    """Whether the locked file is the one that stands in the folder, not one that its holder has just removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, own: _Own) -> None:
    text = json.dumps(
        {"pid": os.getpid(), "host": socket.gethostname(), "since": own.since, "purpose": own.purpose}
    )
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode() + b"\n")


def _holder(descriptor: int) -> str:
    """Who wrote the lock file that could not be locked, in words."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        record = json.loads(os.read(descriptor, 4096))
        return f"process {record['pid']} on {record['host']} ({record['purpose']}, since {record['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not written its name yet
        return "another process that has just begun"


def _busy(path: Path, holder: str) -> HeldError:
    return HeldError(
        f"{path} is being written by {holder}",
        "wait for it or stop it, or choose another run",
    )


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, file: Path) -> None:
        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, file: Path) -> None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            raise ArtifactError(
                f"{file}: this file system has no locks ({error.strerror}), so two commands could write one run unseen",
                "keep runs on a file system with POSIX locks (an NFS mount needs its lock service, not `nolock`)",
            ) from error


def _make(path: Path) -> list[Path]:
    """Make a folder; those that were made, the innermost first."""
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
