"""A folder that is replaced again and again, such as checkpoints/last: versions, and a link to the newest whole one.

    last -> last-000123      a relative link, replaced in one rename
    last-000123/

A writer fills a new version under another name, syncs it, renames it, moves the link, and only then removes the
version before. Whenever it is cut off, the link names a whole version. Readers write nothing.

Where the file system has no links (FAT, some network shares, Windows without the right to make them), the file
`last.version` holds the version's name instead. A plain folder `last`, as older versions wrote it, is read as it is,
and becomes a version when the next one is written.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from compactmtl.artifacts.files import naming, sync_folder, write_text
from compactmtl.artifacts.layout import HASHES

T = TypeVar("T")

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def resolve(path: Path) -> Path:
    """The folder that `path` stands for now; `path` itself where there is none."""
    if path.is_symlink():
        return path.parent / path.readlink()
    if path.is_dir():
        return path
    try:
        name = _pointer(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        name = ""
    if _number(path, name) is not None and (path.parent / name).is_dir():
        return path.parent / name
    # cut off while a plain folder became a version
    whole = [folder for _, folder in _versions(path) if (folder / HASHES).is_file()]
    if whole:
        return whole[-1]
    former = path.with_name(f".{path.name}.previous")  # cut off between the two renames of older versions
    return former if former.is_dir() else path


def is_version(folder: Path) -> bool:
    """Whether a folder was written as a version, so that it has hashes."""
    return re.fullmatch(r".+-\d{6,}", folder.name) is not None


def read_version(path: Path, read: Callable[[Path], T]) -> T:
    """`read` of the folder that `path` stands for, again where a writer replaced it meanwhile."""
    while True:
        folder = resolve(path)
        try:
            return read(folder)
        except Exception:
            if resolve(path) == folder:
                raise


@contextmanager
def new_version(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success `path` stands for it, else for what it stood for before.

    One writer at a time (see compactmtl.artifacts.lock). Raises OSError naming the folder.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
    try:
        yield temporary
        with naming(path):
            sync_folder(temporary)
            newest = max((number for number, _ in _versions(path)), default=0)
            plain = path.is_dir() and not path.is_symlink()  # as older versions wrote it
            version = _version(path, newest + 1 + plain)
            temporary.rename(version)
            if plain:
                path.rename(_version(path, newest + 1))
            sync_folder(path.parent)
            _point(path, version)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _clear(path, version)


def _point(path: Path, version: Path) -> None:
    """Let `path` stand for `version`, at once."""
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    try:
        if os.name == "nt":  # where a link to a folder cannot be replaced in one rename
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        link.symlink_to(version.name, target_is_directory=True)
    except OSError as error:
        if error.errno not in _NO_LINKS or path.is_symlink():  # a full disk, say: `path` must not go stale
            raise
        write_text(_pointer(path), version.name + "\n")
        return
    os.replace(link, path)  # noqa: PTH105  (Path.replace says the same; this is the call that must be atomic)
    sync_folder(path.parent)
    _pointer(path).unlink(missing_ok=True)


def _clear(path: Path, current: Path) -> None:
    """Remove what `path` no longer stands for. A version that cannot be removed is tried again at the next writing."""
    for _, folder in _versions(path):
        if folder != current:
            _remove(folder)
    _remove(path.with_name(f".{path.name}.previous"))
    for old in path.parent.glob(f".{path.name}*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder so that a kill on the way leaves nothing that looks whole."""
    old = folder.with_name(f".{folder.name.lstrip('.')}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        folder.rename(old)
    except OSError:
        return
    shutil.rmtree(old, ignore_errors=True)


def _pointer(path: Path) -> Path:
    return path.with_name(f"{path.name}.version")


def _version(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number:06d}")


def _number(path: Path, name: str) -> int | None:
    match = re.fullmatch(rf"{re.escape(path.name)}-(\d{{6,}})", name)
    return None if match is None else int(match[1])


def _versions(path: Path) -> list[tuple[int, Path]]:
    """Numbers and folders of all versions, oldest first."""
    if not path.parent.is_dir():
        return []
    numbered = ((_number(path, child.name), child) for child in path.parent.iterdir())
    return sorted((number, child) for number, child in numbered if number is not None)
