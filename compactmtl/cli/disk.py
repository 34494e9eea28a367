"""Whether a folder can be written to, and which disk refused where the error itself does not say."""

from __future__ import annotations

import argparse
import errno
import os
import re
import tempfile
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEAST = 1 << 20  # bytes; a disk with less is the one that a file did not fit on
# How libraries in C++ and Rust pass on what the system said: `(os error 28)`, `[errno 30]`.
_CODE = re.compile(r"(?:os error |errno[ =:]+|Os \{ code: )(\d+)", re.IGNORECASE)
_WORDS = {
    "no space left on device": errno.ENOSPC,
    "read-only file system": errno.EROFS,
    "disk quota exceeded": errno.EDQUOT,
}


def disk_error(error: BaseException) -> OSError | None:
    """The disk's refusal behind a library's own exception; None where it is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (*_FULL, errno.EROFS):
            return cause
        text = str(cause)
        code = next((number for words, number in _WORDS.items() if words in text.lower()), None)
        match = _CODE.search(text)
        if code is None and match is not None and int(match[1]) in (*_FULL, errno.EROFS):
            code = int(match[1])
        if code is not None:
            return OSError(code, os.strerror(code))
        cause = cause.__cause__ or cause.__context__
    return None


def refused_place(code: int | None, args: argparse.Namespace) -> str | None:
    """The folder of the command that lies on a full or read-only disk; else the one that it writes to."""
    words = [value for name, value in vars(args).items() if name != "given"]
    values = [getattr(args, "out", None), *words]  # what is written before what is read
    named = [str(word) for value in values for word in (value if isinstance(value, list) else [value])]
    folders = [folder for word in named if word and (folder := _existing(word)) is not None]
    cache = _existing(os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache"))
    folders += [Path.cwd(), Path(tempfile.gettempdir()), *([] if cache is None else [cache])]
    for folder in folders if hasattr(os, "statvfs") else ():
        state = os.statvfs(folder)
        if code in _FULL and state.f_bavail * state.f_frsize < _LEAST:
            return str(folder)
        if code == errno.EROFS and state.f_flag & os.ST_RDONLY:
            return str(folder)
    out = getattr(args, "out", None) or getattr(args, "run", None)
    return None if out is None else str(out)


def check_writable(folder: Path) -> None:
    """Try to write into a folder that may yet have to be made; OSError with its path where that fails.

    It is tried, since permissions say nothing of a read-only or full disk, nor of a file where a folder should be; and
    it is tried before a long piece of work, whose result would be lost.
    """
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, error.strerror or os.strerror(code), str(existing)) from error


def _existing(word: str) -> Path | None:
    """The folder that a word of the command line names, or that would hold what it names."""
    path = Path(word)
    try:
        if path.is_dir():
            return path
        return path.parent if len(path.parts) > 1 and path.parent.is_dir() else None
    except (OSError, ValueError):
        return None
