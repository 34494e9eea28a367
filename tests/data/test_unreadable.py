"""Training samples that cannot be read: an error, or the next sample in their place, the same for any cache and workers."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import Batch, build_loader, load_dataset
from compactmtl.data.unreadable import IN_A_ROW
from compactmtl.errors import CompactWarning, DataError
from tests.support.layouts.folder import write_folder

DAMAGED = ("004", "006")  # of train/000, 002, … 038: two that follow each other


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_folder(tmp_path / "data", count=40, size=(16, 24), split=True)


def damage(folder: Path, *names: str, split: str = "train") -> None:
    for name in names:
        path = folder / "images" / split / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:200])


def config(folder: Path, **fields: Any) -> DataConfig:
    given = {"name": "folder", "root": str(folder), "size": (16, 24), "batch_size": 4, "on_error": "skip"}
    augment = {"flip": True, "zoom": [1.0, 1.4], "color": 0.3}
    return DataConfig.model_validate(given | {"augment": augment} | fields)


def epoch(data: DataConfig, number: int = 1, start: int = 0) -> list[Batch]:
    loader = build_loader(load_dataset(data, "train"), data, train=True, seed=0)
    loader.sampler.set_epoch(number)
    loader.sampler.set_start(start)
    return list(loader)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a["image"], b["image"])
        and a.get("unread") == b.get("unread")
        and all(
            torch.equal(value.nan_to_num(), b["targets"][name].nan_to_num())
            for name, value in a["targets"].items()
        )
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_a_damaged_image_ends_training_unless_it_is_passed_over(folder: Path, cache: str) -> None:
    damage(folder, "004")
    with pytest.raises(DataError, match=r"004\.jpg: not a whole image"):
        epoch(config(folder, cache=cache, on_error="raise"))
    assert len(epoch(config(folder, cache=cache))) == 5


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_next_sample_that_can_be_read_takes_the_place(folder: Path, cache: str) -> None:
    whole = load_dataset(config(folder), "train")
    names = [Path(whole.identifier(index)).stem for index in range(len(whole))]
    places = [names.index(name) for name in DAMAGED]
    assert places == [2, 3]
    heights = {n: float(whole[n]["targets"]["height"]) for n in range(len(whole))}
    damage(folder, *DAMAGED)
    data = config(folder, cache=cache, augment={})
    batches = epoch(data)
    found = torch.cat([batch["targets"]["height"] for batch in batches]).tolist()
    expected = sorted(heights[4 if n in places else n] for n in heights)
    assert sorted(found) == pytest.approx(expected)
    assert [len(batch["image"]) for batch in batches] == [4] * 5  # no batch is smaller
    assert all(torch.isfinite(batch["image"]).all() for batch in batches)
    unread = [failed for batch in batches for failed in batch.get("unread", [])]
    assert sorted(len(failed) for failed in unread) == [1, 2]  # 006 alone, and 004 with 006 after it
    assert {Path(name).stem for failed in unread for name in failed} == set(DAMAGED)
    assert all("not a whole image" in what for failed in unread for what in failed.values())


def test_what_takes_the_place_is_augmented_as_the_place(folder: Path) -> None:
    before = epoch(config(folder, cache="none"))
    damage(folder, "004")
    after = epoch(config(folder, cache="none"))
    differing = sum(
        not torch.equal(one, other)
        for a, b in zip(before, after, strict=True)
        for one, other in zip(a["image"], b["image"], strict=True)
    )
    assert differing == 1


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_workers_resumption_and_caches_change_nothing(folder: Path, cache: str) -> None:
    damage(folder, *DAMAGED)
    alone = epoch(config(folder, cache="none"), number=3)
    assert same(alone, epoch(config(folder, cache=cache, workers=2), number=3))
    assert same(alone[2:], epoch(config(folder, cache=cache), number=3, start=2))


def test_each_process_replaces_what_one_would(folder: Path) -> None:
    damage(folder, *DAMAGED)
    data = config(folder, cache="none")
    whole = epoch(data)
    parts = []
    for number in range(2):
        loader = build_loader(load_dataset(data, "train"), data, train=True, seed=0)
        loader.sampler.split(number, 2)
        loader.sampler.set_epoch(1)
        parts.append(list(loader))
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch["image"], torch.cat([one["image"], other["image"]]))
        assert batch.get("unread", []) == one.get("unread", []) + other.get("unread", [])


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("split", ["val", "holdout"])
def test_a_split_that_measures_is_never_passed_over(folder: Path, cache: str, split: str) -> None:
    data = config(folder, cache=cache, holdout=0.3)
    held = load_dataset(data.model_copy(update={"cache": "none"}), split)  # type: ignore[arg-type]
    name = Path(held.identifier(1)).stem
    damage(folder, name, split="val" if split == "val" else "train")
    with pytest.raises(DataError, match=rf"{name}\.jpg"):
        list(build_loader(load_dataset(data, split), data, train=False, seed=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_mend_says_why_skip_does_not_help_there(folder: Path, cache: str) -> None:
    damage(folder, "003", split="val")
    data = config(folder, cache=cache)
    with pytest.raises(DataError) as caught:
        list(build_loader(load_dataset(data, "val"), data, train=False, seed=0))
    assert caught.value.hint.count("training samples alone") == 1


def test_the_mend_names_the_key_where_an_image_ends_a_training(folder: Path) -> None:
    damage(folder, "004")
    damage(folder, "003", split="val")
    data = config(folder, cache="none", on_error="raise")
    for split, named in (("train", True), ("val", False)):
        with pytest.raises(DataError) as caught:
            list(build_loader(load_dataset(data, split), data, train=False, seed=0))  # type: ignore[arg-type]
        assert ("data.on_error=skip" in caught.value.hint) == named


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_folder_that_is_gone_is_an_error_at_once(folder: Path, workers: int) -> None:
    data = config(folder, cache="none", workers=workers)
    dataset = load_dataset(data, "train")
    for path in (folder / "images" / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"20 samples in a row cannot be read.*no such file"):
        next(iter(build_loader(dataset, data, train=True, seed=0)))
    assert len(dataset) < IN_A_ROW  # else it would be as many


def test_a_label_file_counts_as_an_image_does(folder: Path) -> None:
    (folder / "depth" / "train" / "004.png").write_bytes(b"no picture")
    (failed,) = [one for batch in epoch(config(folder, cache="none")) for one in batch.get("unread", [])]
    assert "depth" in next(iter(failed.values()))


def test_who_reads_training_samples_without_training_is_told(folder: Path) -> None:
    """As calibration of int8 does: nobody counts for it."""
    damage(folder, "004")
    data = config(folder, cache="none")
    with pytest.warns(CompactWarning, match=r"004\.jpg is passed over"):
        list(build_loader(load_dataset(data, "train"), data, train=False, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(data)


def test_a_cache_on_disk_that_lacks_samples_is_no_cache_for_whoever_needs_them(folder: Path) -> None:
    damage(folder, "004")
    epoch(config(folder, cache="disk"))
    assert len(list((folder.parent / "cache").rglob("failed.json"))) == 1
    epoch(config(folder, cache="disk"))  # found again
    with pytest.raises(DataError, match=r"004\.jpg: not a whole image") as caught:
        load_dataset(config(folder, cache="disk", on_error="raise"), "train")
    assert "fetch it again" in caught.value.hint
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(folder / "images" / "train" / "004.jpg")
    load_dataset(config(folder, cache="disk", on_error="raise"), "train")  # a mended file is another cache


def test_a_sample_that_a_cache_on_disk_lacks_is_tried_again(folder: Path) -> None:
    """What was wrong when it was built may have been the disk, with the file as it is now."""
    path = folder / "images" / "train" / "004.jpg"
    whole, times = path.read_bytes(), path.stat()
    clean = epoch(config(folder, cache="none"))
    path.write_bytes(b"?" * len(whole))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not same(epoch(config(folder, cache="disk")), clean)
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for on_error in ("skip", "raise"):
        assert same(epoch(config(folder, cache="disk", on_error=on_error)), clean)
    assert len(list((folder.parent / "cache").rglob("failed.json"))) == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"x": "y"}'])
def test_a_damaged_list_of_failures_is_told(folder: Path, text: str) -> None:
    damage(folder, "004")
    epoch(config(folder, cache="disk"))
    (path,) = (folder.parent / "cache").rglob("failed.json")
    path.write_text(text)
    with pytest.raises(DataError, match=r"failed\.json: not the list"):
        load_dataset(config(folder, cache="disk"), "train")


def test_of_several_data_sets_a_sample_of_the_same_one_takes_the_place(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", count=24, size=(16, 24), split=True, seed=1)
    damage(folder, *DAMAGED)
    sources = [
        {"name": "folder", "alias": "a", "root": str(folder), "tasks": ["depth"]},
        {"name": "folder", "alias": "b", "root": str(other), "tasks": ["segmentation"]},
    ]
    given = {"size": (16, 24), "batch_size": 4, "on_error": "skip", "cache": "none", "sources": sources}
    data = DataConfig.model_validate(given)
    batches = epoch(data)
    unread = [failed for batch in batches for failed in batch.get("unread", [])]
    assert len(unread) == 2 and all(name.startswith(str(folder)) for failed in unread for name in failed)
    for batch in batches:
        known = [bool((value > 0).any()) for value in batch["targets"]["depth"]]
        assert known == [source == "a" for source in batch["sources"]]


def test_teachers_and_skip_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"does not go with data\.pseudo_labels"):
        DataConfig.model_validate(
            {
                "name": "scenes",
                "size": (16, 24),
                "on_error": "skip",
                "pseudo_labels": {"depth": {"teacher": "t", "agreement": 0.1}},
            }
        )
