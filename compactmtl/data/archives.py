"""Unpack archives of data sets: safely, with a progress bar, and again from where an interrupted run stopped."""

from __future__ import annotations

import argparse
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from compactmtl.data.convert import run_tool
from compactmtl.errors import DataError, command

Place = Callable[[PurePosixPath], PurePosixPath | None]
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Extracted:
    """Files written now, files that were there already, and members that `place` left out."""

    written: int = 0
    present: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def extract(archive: Path, folder: Path, place: Place | None = None) -> Extracted:
    """Unpack a .zip, .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz into `folder`.

    A file that is there with the member's size is kept, so a second run goes on where the first stopped; each file
    appears whole, by renaming. Links and devices are never made.

    Args:
        place: where a member goes, relative to `folder`; None leaves it out. By default its own path.

    Raises:
        DataError: for an archive that is missing, damaged, or not one; or a member that would land outside `folder`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    written = present = left_out = 0
    try:
        with (
            _members(archive) as (members, total),
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            bar = progress.add_task(archive.name, total=total)
            for member in members:
                target = (place or _own_place)(_safe(archive, member.name))
                if target is None:
                    left_out += 1
                else:
                    path = folder / _safe(archive, str(target))
                    _inside(archive, folder, path)
                    if path.is_file() and path.stat().st_size == member.size:
                        present += 1
                    else:
                        _write(member, path, archive)
                        written += 1
                progress.advance(bar, member.size)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        NotImplementedError,
        zlib.error,
        LZMAError,
    ) as error:
        raise DataError(f"{archive}: damaged, or not an archive ({error})", "fetch it again") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(archive):
            raise DataError(f"{archive}: no such file", "check the path") from error
        if error.errno is None:  # a decompressor's, not the system's
            raise DataError(f"{archive}: damaged ({error})", "fetch it again") from error
        raise
    return Extracted(written, present, left_out)


def unpack_tool(
    argv: list[str] | None, doc: str | None, place: Place, *, name: str, title: str, hint: str
) -> int:
    """The command line of a tool that unpacks the archives of a data set into one folder; gives the exit code.

    Args:
        doc: what its --help says.
        name: the data set's, which also names the folder by default.
        title: the data set's name in words.
        hint: where the archives are listed.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE")
    parser.add_argument("--out", type=Path, default=Path("data", name), help="default: %(default)s")
    args = parser.parse_args(argv)

    def unpack() -> int:
        for archive in args.archives:
            done = extract(archive, args.out, place)
            if not done.written and not done.present:
                raise DataError(f"{archive}: holds no file of {title} ({done.left_out} others)", hint)
            print(f"{archive.name}: {done.written} files written, {done.present} were there")
        print(f"look at them: {command('data', 'check', name, f'root={args.out}')}")
        return 0

    return run_tool(unpack)


@contextmanager
def _members(archive: Path) -> Iterator[tuple[Iterator[_Member], int]]:
    """The regular files of an archive, in its order, and their bytes in sum."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir() and not _is_link(info)]
            members = (_Member(info.filename, info.file_size, _opener(opened, info)) for info in infos)
            yield members, sum(info.file_size for info in infos)
        return
    with tarfile.open(archive) as tar:
        parts = [part for part in tar.getmembers() if part.isreg()]
        while tar.fileobj is not None and tar.fileobj.read(_BLOCK):
            pass  # the checksum of a compressed archive comes at its very end
        yield (
            (_Member(part.name, part.size, _tar_opener(tar, part)) for part in parts),
            sum(part.size for part in parts),
        )


def _opener(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: opened.open(info)


def _tar_opener(tar: tarfile.TarFile, part: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def open_part() -> IO[bytes]:
        file = tar.extractfile(part)
        assert file is not None  # a regular file
        return file

    return open_part


def _is_link(info: zipfile.ZipInfo) -> bool:
    return (info.external_attr >> 16) & 0o170000 == 0o120000


def _own_place(path: PurePosixPath) -> PurePosixPath:
    return path


def _safe(archive: Path, name: str) -> PurePosixPath:
    """A member's path; DataError where it is absolute, has a drive, or climbs."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]) or "\0" in name:
        raise DataError(
            f"{archive}: member {name!r} would land outside the folder",
            "this is not an archive of the data set; fetch it from its own site",
        )
    return path


def _inside(archive: Path, folder: Path, path: Path) -> None:
    """A link that lies in the folder already must not lead out of it."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{archive}: {path} would be written through a link, outside {folder}",
            "unpack into an empty folder",
        )


def _write(member: _Member, path: Path, archive: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with member.open() as source, unfinished.open("wb") as target:
            shutil.copyfileobj(source, target, _BLOCK)
        if unfinished.stat().st_size != member.size:
            raise DataError(f"{archive}: {member.name} is cut short", "fetch the archive again")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
