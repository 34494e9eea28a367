"""COCO's archives unpack into the layout that the loader reads."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from compactmtl.data import Split, load_dataset
from tests.support.layouts.coco import write_coco
from tools.prepare_coco import main


@pytest.fixture
def archives(tmp_path: Path) -> list[str]:
    """As they are distributed: the stuff maps are in train2017/ and val2017/ of their own archive."""
    folder = write_coco(tmp_path / "source", stuff=True)
    made: list[str] = []
    for name, top in (
        ("train2017", folder),
        ("val2017", folder),
        ("annotations", folder),
        ("train2017", folder / "stuffthingmaps"),
        ("val2017", folder / "stuffthingmaps"),
    ):
        path = tmp_path / f"{len(made)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((top / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
            archive.writestr("annotations/captions_val2017.json", "{}")
        made.append(str(path))
    return made


def test_unpacked_archives_load_with_stuff(archives: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*archives, "--out", str(out)]) == 0
    assert not (out / "annotations" / "captions_val2017.json").exists()
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        fields: dict[str, Any] = {"root": out, "options": {"stuff": True}, "size": (30, 40)}
        assert len(load_dataset("coco", split, **fields)) == 4


def test_an_archive_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train2017/notes.txt", "hello")
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no file of COCO 2017" in capsys.readouterr().err
