"""A fingerprint tells data apart by what they hold, not by where they lie or when they were written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from compactmtl.data import fingerprint as module
from compactmtl.data import load_dataset
from compactmtl.data.base import Sample
from compactmtl.data.fingerprint import differences, fingerprint
from compactmtl.data.part import Part
from compactmtl.tasks import TargetSpec


class Named:
    """A data set that knows no files of its own but names each sample by one."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.specs: Mapping[str, TargetSpec] = {"value": TargetSpec("scalar")}
        self.split = "train"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        return {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "targets": {}}

    def identifier(self, index: int) -> str:
        return self.names[index]


def write(folder: Path, contents: dict[str, bytes]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in contents]


def test_the_place_does_not_matter_and_the_content_does(tmp_path: Path) -> None:
    one, other = ({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"})
    first = fingerprint(Named(write(tmp_path / "here", one)), str(tmp_path / "here"))
    assert first == fingerprint(Named(write(tmp_path / "there", one)), str(tmp_path / "there"))
    changed = fingerprint(Named(write(tmp_path / "there", other)), str(tmp_path / "there"))
    assert differences(first, changed) == ["1 changed (b)"]


@pytest.mark.parametrize("at", [0, 40_000, -1])
def test_both_ends_and_the_size_of_a_large_file_count(tmp_path: Path, at: int) -> None:
    content = bytearray(200_000)
    before = fingerprint(Named(write(tmp_path, {"a": bytes(content)})))
    content[at] = 1
    read = at != 40_000  # the middle of a large file is not read
    assert (fingerprint(Named(write(tmp_path, {"a": bytes(content)}))) != before) == read
    assert fingerprint(Named(write(tmp_path, {"a": bytes(200_001)}))) != before


def test_of_a_large_set_the_sizes_of_all_and_the_contents_of_some_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_READ", 5)
    names = [f"{number:02d}" for number in range(20)]
    before = fingerprint(Named(write(tmp_path, dict.fromkeys(names, b"1"))))
    same_size = fingerprint(Named(write(tmp_path, dict.fromkeys(names, b"2"))))
    assert sum(before[name] != same_size[name] for name in names) == 5
    larger = fingerprint(Named(write(tmp_path, dict.fromkeys(names, b"22"))))
    assert all(before[name] != larger[name] for name in names)


def test_samples_of_one_name_are_all_counted() -> None:
    assert len(fingerprint(Named(["a", "a", "a"]))) == 3


def test_differences_are_told_in_words() -> None:
    before = {"a": "1", "b": "1", "c": "1"}
    assert differences(before, dict(before)) == []
    assert differences(before, {"b": "1", "a": "1", "c": "1"}) == ["the same samples in another order"]
    assert differences(before, {"a": "2", "b": "1", "d": "1", "e": "1"}) == [
        "3 samples then, 4 now",
        "2 new (d, e)",
        "1 gone (c)",
        "1 changed (a)",
    ]
    assert differences({}, {str(number): "" for number in range(9)})[1] == "9 new (0, 1, 2, …)"


def test_generated_data_and_a_part_of_them_have_one_too() -> None:
    whole = load_dataset("scenes", "train", size=(16, 24), options={"train": 6, "val": 2})
    assert len(fingerprint(whole)) == 6
    part = Part(whole, 0.5)
    assert fingerprint(part).items() <= fingerprint(whole).items()
    assert len(fingerprint(part)) == 3
