"""Every file of an artifact is held against its hash; every damage names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compactmtl.artifacts.hashes import check_files, read_checked, read_hashes, write_hashed, write_hashes
from compactmtl.artifacts.layout import HASHES
from compactmtl.errors import ArtifactError, CompactWarning

MEND = "make it again"


def write(folder: Path, text: str = "content") -> Path:
    folder.mkdir(exist_ok=True)
    write_hashed(folder, {"one": text.encode() * 50, "other": b"x"}, {"checkpoint": "0" * 64})
    return folder


def test_what_was_written_is_read_with_its_sources(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_checked(tmp_path, "one", MEND) == b"content" * 50
    hashes = read_hashes(tmp_path, MEND)
    assert hashes is not None
    assert hashes.sources == {"checkpoint": "0" * 64}
    check_files(tmp_path, hashes, MEND)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("artifact"))


@given(st.data())
def test_any_flipped_bit_and_any_truncation_is_noticed(artifact: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["one", "other", HASHES]))
    path = artifact / name
    whole = path.read_bytes()
    broken = bytearray(whole)
    if data.draw(st.booleans()):
        broken[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del broken[data.draw(st.integers(0, len(whole) - 1)) :]
    unchanged = name == HASHES and means_the_same(bytes(broken), whole)
    path.write_bytes(broken)
    try:
        if unchanged:
            read_hashes(artifact, MEND)
            return
        with pytest.raises(ArtifactError) as caught:
            read_both(artifact)
        assert str(path) in caught.value.message
        assert caught.value.hint == MEND
    finally:
        path.write_bytes(whole)


def read_both(folder: Path) -> None:
    for file in ("one", "other"):
        read_checked(folder, file, MEND)


def means_the_same(one: bytes, other: bytes) -> bool:
    """Whether two texts are one JSON value: white space may change."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_a_missing_a_swapped_and_an_unlisted_file_are_named(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b", "another")
    (one / "one").write_bytes((other / "one").read_bytes())
    with pytest.raises(ArtifactError, match=r"a/one is damaged or was exchanged"):
        read_checked(one, "one", MEND)
    (one / "one").unlink()
    with pytest.raises(ArtifactError, match=r"a/one is missing"):
        read_checked(one, "one", MEND)
    (one / "third").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"third is not among the files"):
        read_checked(one, "third", MEND)


def test_an_artifact_of_an_older_version_is_read_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"old")
    with pytest.warns(CompactWarning, match="has no hashes.json: an older version wrote it"):
        assert read_checked(tmp_path, "one", MEND) == b"old"
    assert read_hashes(tmp_path, MEND) is None


def test_a_later_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compactmtl.artifacts.hashes.VERSION", 2)
    write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="is of version 2"):
        read_hashes(tmp_path, MEND)


def test_a_whole_folder_is_hashed_but_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / ".hidden").write_bytes(b"2")
    write_hashes(tmp_path)
    hashes = read_hashes(tmp_path, MEND)
    assert hashes is not None and list(hashes.files) == ["one"]
