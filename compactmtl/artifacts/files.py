"""Durable writing: after a crash, a full disk or a kill there is the old content or the new, never half.

Every error is an OSError that carries the path, so that the command line can name it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compactmtl.errors import ConfigError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file (a failed write does not) the file it happened at."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error
        raise


def expanded(path: str | Path) -> Path:
    """A path with `~` at its start as the user's home. Raises ConfigError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        first = Path(path).parts[0]
        raise ConfigError(
            f"{path}: {first} is the home of a user that this system does not know",
            f"write the whole path, or ./{first} for a folder of that name",
        ) from error


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON document. Raises ValueError, as `json.loads`, for one that is nested too deeply to be read, too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("the document is nested too deeply", "", 0) from None


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data` at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8) at once."""
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Add one line and make it durable; a partial line is cut off again."""
    with naming(path), path.open("ab", buffering=0) as file:  # a buffer would be written once more on closing
        size = file.tell()
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `path`, else `path` and the folders around it stay as they were.

    A folder cannot be replaced in one rename: between the two there is only `.NAME.previous`, which `present` gives
    to readers and the next writer puts back. One writer at a time (see compactmtl.artifacts.lock).
    """
    temporary, previous = path.with_name(f".{path.name}.tmp"), _previous(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the nearest first
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with naming(path):
            sync_folder(temporary)
            shutil.rmtree(previous, ignore_errors=True)
            if path.exists():
                path.rename(previous)
            temporary.rename(path)
            sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _recover(path)
        with suppress(OSError):  # what others have put something into stays
            for folder in made:
                folder.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def present(path: Path) -> Path:
    """The folder that `new_folder` writes as `path`, also where a writer was cut off between its two renames."""
    previous = _previous(path)
    return previous if not path.exists() and previous.exists() else path


def _recover(path: Path) -> None:
    """Finish a replacement of `path` that was cut off between its two renames."""
    previous = _previous(path)
    if previous.exists() and not path.exists():
        previous.rename(path)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")
