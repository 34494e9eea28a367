"""A folder that is replaced again and again is whole at every moment, whoever is killed or reads meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compactmtl.artifacts import versions
from compactmtl.artifacts.files import write_text
from compactmtl.artifacts.hashes import check_files, read_hashes, write_hashed
from compactmtl.artifacts.layout import HASHES
from compactmtl.artifacts.versions import new_version, read_version, resolve


def write(path: Path, text: str) -> None:
    with new_version(path) as folder:
        write_hashed(folder, {"weights": text.encode(), "state": text.encode()})


def read(path: Path) -> str:
    """The text of a whole version: both files, of one writing, as their hashes say."""

    def whole(folder: Path) -> str:
        hashes = read_hashes(folder, "")
        assert hashes is not None
        check_files(folder, hashes, "")
        one, other = ((folder / name).read_text() for name in ("weights", "state"))
        assert one == other
        return one

    return read_version(path, whole)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_path_stands_for_the_newest_version_and_older_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "last"
    for text in ("old", "new"):
        write(path, text)
    assert read(path) == "new"
    assert (path / "weights").read_text() == "new"  # for whoever reads without this package
    assert names(tmp_path) == ["last", "last-000002"]
    assert path.readlink() == Path("last-000002")  # relative: the run may be moved


class Killed(BaseException):
    """Stands for a kill: nothing that would mend anything may run after it."""


STEPS = ("open", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir", "fsync")


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """At the change number `number` of the file system, before it is made, and at all after it: a kill."""
    done: list[str] = []

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR)):
                return call(*args, **kwargs)
            done.append(name)
            if len(done) > number:
                raise Killed
            return call(*args, **kwargs)

        return made

    with monkeypatch.context() as patched:
        for name in STEPS:
            patched.setattr(os, name, counting(name, getattr(os, name)))
        yield done


@pytest.mark.parametrize("before", ["a version", "a plain folder", "nothing"])
def test_a_kill_at_any_step_leaves_a_whole_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    number, seen = 0, []
    while True:
        root = tmp_path / str(number)
        root.mkdir()
        path = root / "last"
        if before == "a version":
            write(path, "old")
        elif before == "a plain folder":
            path.mkdir()
            write_hashed(path, {"weights": b"old", "state": b"old"})
        try:
            with killed_at(monkeypatch, number) as steps:
                write(path, "new")
        except Killed:
            pass
        whole = len(steps) <= number
        before_reading = names(root)
        if resolve(path).is_dir():
            assert read(path) in ("old", "new")
            seen.append(read(path))
        else:
            assert before == "nothing"
        assert names(root) == before_reading  # a reader changes nothing
        write(path, "next")
        assert read(path) == "next"
        assert len(names(root)) == 2, "what the killed writer left is cleared away"
        if whole:
            break
        number += 1
    assert number > 10
    assert seen[-1] == "new"
    assert (seen[0] == "old") == (before != "nothing")


def test_a_plain_folder_without_hashes_is_read_while_it_becomes_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        path = tmp_path / str(number) / "last"
        path.mkdir(parents=True)
        write_text(path / "weights", "old")
        try:
            with killed_at(monkeypatch, number) as steps:
                write(path, "new")
        except Killed:
            pass
        assert (resolve(path) / "weights").read_text() in ("old", "new")
        if len(steps) <= number:
            return
    raise AssertionError("the writer makes more steps than were tried")


def test_a_full_disk_keeps_the_version_before_and_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last"
    write(path, "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "symlink", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(OSError, match="No space") as caught:
                write(path, "new")
        assert str(tmp_path) in str(caught.value.filename)
        assert read(path) == "old"


def test_where_there_are_no_links_a_file_names_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "last"
    with monkeypatch.context() as patched:
        patched.setattr(os, "symlink", none)
        for text in ("old", "new"):
            write(path, text)
        assert names(tmp_path) == ["last-000002", "last.version"]
        assert read(path) == "new"
    write(path, "next")  # links are here again
    assert read(path) == "next"
    assert names(tmp_path) == ["last", "last-000003"]


def test_an_older_layout_that_was_cut_off_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".last.previous").mkdir()
    write_text(tmp_path / ".last.previous" / "weights", "old")
    assert (resolve(tmp_path / "last") / "weights").read_text() == "old"
    assert names(tmp_path) == [".last.previous"]


def test_a_copy_that_followed_the_links_is_a_checkpoint_too(tmp_path: Path) -> None:
    write(tmp_path / "run" / "last", "old")
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    assert not (copy / "last").is_symlink()
    assert read(copy / "last") == "old"
    write(copy / "last", "new")
    assert read(copy / "last") == "new"


def test_a_reader_whose_version_goes_meanwhile_reads_the_next(tmp_path: Path) -> None:
    path = tmp_path / "last"
    write(path, "old")
    reads: list[Path] = []

    def slow(folder: Path) -> str:
        reads.append(folder)
        if len(reads) == 1:
            write(path, "new")
        return (folder / "weights").read_text()

    assert read_version(path, slow) == "new"
    assert len(reads) == 2
    with pytest.raises(FileNotFoundError):
        read_version(path, lambda folder: (folder / "none").read_text())


WRITE = """
import sys, itertools
from pathlib import Path
from compactmtl.artifacts.hashes import write_hashed
from compactmtl.artifacts.versions import new_version
path = Path(sys.argv[1])
for number in itertools.count():
    data = str(number).encode() * 20000
    with new_version(path) as folder:
        write_hashed(folder, {"weights": data, "state": data})
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_over_and_over_always_leaves_a_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "last"
    for attempt in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(5):
                read(path)  # beside the writer
            time.sleep(0.003 * attempt)  # another step each time
            process.kill()
        assert read(path)
        assert (resolve(path) / HASHES).exists()


def test_versions_of_other_names_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "best", "best")
    (tmp_path / "last-notes").mkdir()
    for text in ("old", "new"):
        write(tmp_path / "last", text)
    assert read(tmp_path / "best") == "best"
    assert (tmp_path / "last-notes").is_dir()
    assert versions.is_version(resolve(tmp_path / "best"))
    assert not versions.is_version(tmp_path / "last-notes")
