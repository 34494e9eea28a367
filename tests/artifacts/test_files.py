"""Durable writing: old or new, never half."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compactmtl.artifacts.files import append_line, expanded, new_folder, present, write_bytes, write_text
from compactmtl.errors import ConfigError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_bytes(path, b"old")
    write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["weights"]


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space") as caught:
        write_bytes(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights"]


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space") as caught:
            append_line(path, "two")
    assert caught.value.filename == str(path)
    append_line(path, "three")
    assert path.read_text() == "one\nthree\n"


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """limited(size): files of this process cannot become larger, as on a disk that becomes full in the middle of a write."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_line_of_which_a_part_fits_is_cut_off_whole(tmp_path: Path, limited: Callable[[int], None]) -> None:
    """The part that did not fit must not come after it when the file is closed."""
    path = tmp_path / "log.jsonl"
    append_line(path, "one")
    limited(100)
    with pytest.raises(OSError, match="too large") as caught:
        append_line(path, "x" * 20_000)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one\n"
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_file_of_which_a_part_fits_leaves_the_old_one(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    path = tmp_path / "weights"
    write_bytes(path, b"old")
    limited(100)
    with pytest.raises(OSError, match="too large"):
        write_bytes(path, b"x" * 20_000)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["weights"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "last"
    for text in ("old", "new"):
        with new_folder(path) as folder:
            write_text(folder / text, text)
    assert names(tmp_path) == ["last"]
    assert names(path) == ["new"]


def test_a_failure_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "last"
    with new_folder(path) as folder:
        write_text(folder / "state", "old")
    with pytest.raises(FileNotFoundError), new_folder(path) as folder:  # noqa: PT012
        write_text(folder / "state", "new")
        write_text(folder / "missing" / "state", "new")
    assert (path / "state").read_text() == "old"
    assert names(tmp_path) == ["last"]


def test_a_failed_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last"
    with new_folder(path) as folder:
        write_text(folder / "state", "old")
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name == ".last.tmp":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="Input/output"), new_folder(path) as folder:
        write_text(folder / "state", "new")
    assert (path / "state").read_text() == "old"


def test_a_kill_between_the_renames_leaves_the_old_folder_to_readers_and_writers(tmp_path: Path) -> None:
    path = tmp_path / "last"
    with new_folder(path) as folder:
        write_text(folder / "state", "old")
    path.rename(tmp_path / ".last.previous")  # what is on disk after a kill there
    assert (present(path) / "state").read_text() == "old"
    assert names(tmp_path) == [".last.previous"]  # a reader changes nothing
    with pytest.raises(RuntimeError), new_folder(path):
        raise RuntimeError
    assert (path / "state").read_text() == "old"


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "last"
    (tmp_path / ".last.tmp").mkdir()
    write_text(tmp_path / ".last.tmp" / "half", "half")
    with new_folder(path) as folder:
        write_text(folder / "state", "new")
    assert names(path) == ["state"]
    assert names(tmp_path) == ["last"]


def test_a_folder_that_fails_leaves_none_around_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "a" / "b" / "c") as folder:
        write_text(folder / "missing" / "file", "x")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "b" / "c"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_home_is_put_in_for_the_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/data") == tmp_path / "data"
    assert expanded(Path("data/~x")) == Path("data/~x")


def test_the_home_of_nobody_is_told() -> None:
    with pytest.raises(ConfigError, match="~no-such-user-here is the home of a user that this system"):
        expanded("~no-such-user-here/data")
