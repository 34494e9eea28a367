"""Archives: what is unpacked, what is refused, and that a second run goes on."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from compactmtl.data.archives import Extracted, extract
from compactmtl.errors import DataError

FILES = {"top/a.txt": b"first", "top/deep/b.bin": bytes(range(256)) * 5000}


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("top")
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        mode: Any = "w:" + path.suffix.removeprefix(".").replace("tar", "")
        with tarfile.open(path, mode) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_files_come_out_whole(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    assert extract(make(tmp_path / name, FILES), out) == Extracted(written=2)
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == FILES


def test_a_second_run_writes_what_is_missing_or_cut_short(tmp_path: Path) -> None:
    archive, out = make(tmp_path / "a.zip", FILES | {"top/c": b"third"}), tmp_path / "out"
    extract(archive, out)
    (out / "top/a.txt").unlink()
    (out / "top/deep/b.bin").write_bytes(b"cut")
    kept = (out / "top/c").stat().st_mtime_ns
    assert extract(archive, out) == Extracted(written=2, present=1)
    assert (out / "top/deep/b.bin").read_bytes() == FILES["top/deep/b.bin"]
    assert (out / "top/c").stat().st_mtime_ns == kept


def test_members_go_where_they_are_placed(tmp_path: Path) -> None:
    def place(path: PurePosixPath) -> PurePosixPath | None:
        return PurePosixPath("flat", path.name) if path.suffix == ".txt" else None

    assert extract(make(tmp_path / "a.zip", FILES), tmp_path / "out", place) == Extracted(
        written=1, left_out=1
    )
    assert (tmp_path / "out/flat/a.txt").read_bytes() == b"first"


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name", ["../evil", "top/../../evil", "/etc/evil", "..\\evil", "C:/evil", "top\\..\\..\\evil"]
)
def test_a_member_that_climbs_out_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    out = tmp_path / "folder" / "out"
    with pytest.raises(DataError, match="outside"):
        extract(make(tmp_path / f"a{suffix}", {name: b"evil"}), out)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_never_made(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        through = tarfile.TarInfo("way/evil")
        through.size = 4
        archive.addfile(through, io.BytesIO(b"evil"))
    extract(path, tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "out/way").is_dir()
    assert not (tmp_path / "out/way").is_symlink()


def test_a_link_in_the_folder_is_not_followed_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/top").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="through a link"):
        extract(make(tmp_path / "a.zip", FILES), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_a_damaged_archive_is_named_and_leaves_no_half_file(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, FILES)
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    archive.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: damaged"):
        extract(archive, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith(".part")]


def test_what_is_no_archive_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>please log in</html>")
    with pytest.raises(DataError, match=r"page\.zip: damaged, or not an archive"):
        extract(tmp_path / "page.zip", tmp_path / "out")
    with pytest.raises(DataError, match=r"none\.zip: no such file"):
        extract(tmp_path / "none.zip", tmp_path / "out")
