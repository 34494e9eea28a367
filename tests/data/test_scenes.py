"""The scenes data set: deterministic by seed, split and number; formats; caches; options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import load_dataset
from compactmtl.data.base import Sample
from compactmtl.data.scenes import Scenes
from compactmtl.errors import ConfigError, DataError


def config(**fields: object) -> DataConfig:
    given = {"name": "scenes", "size": (24, 32), "options": {"train": 8, "val": 3, "test": 2}} | fields
    return DataConfig.model_validate(given)


def same(first: Sample, second: Sample) -> bool:
    return torch.equal(first["image"], second["image"]) and all(
        torch.equal(first["targets"][name], second["targets"][name]) for name in first["targets"]
    )


def test_formats_are_those_of_the_specification() -> None:
    dataset = load_dataset(config(), "train")
    sample = dataset[0]
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 24, 32))
    targets = sample["targets"]
    assert (targets["segmentation"].dtype, targets["segmentation"].shape) == (torch.int64, (24, 32))
    assert (targets["depth"].dtype, targets["depth"].shape) == (torch.float32, (1, 24, 32))
    assert (targets["normals"].dtype, targets["normals"].shape) == (torch.float32, (3, 24, 32))
    assert list(targets) == list(dataset.specs)
    assert int(targets["segmentation"].max()) < len(dataset.specs["segmentation"].classes)


def test_a_sample_depends_on_nothing_but_its_numbers() -> None:
    first, second = load_dataset(config(), "train"), load_dataset(config(cache="none"), "train")
    backwards = [second[i] for i in reversed(range(8))][::-1]
    assert all(same(first[i], backwards[i]) for i in range(8))
    assert same(first[3], first[3])


def test_splits_and_seeds_are_other_rooms() -> None:
    samples = [
        load_dataset(config(), "train")[0],
        load_dataset(config(), "train")[1],
        load_dataset(config(), "val")[0],
        load_dataset(config(), "test")[0],
        load_dataset(config(options={"seed": 1}), "train")[0],
    ]
    for i, one in enumerate(samples):
        assert not any(same(one, other) for other in samples[:i])


def test_more_rooms_leave_the_first_as_they_were() -> None:
    few, many = load_dataset(config(), "train"), load_dataset(config(options={"train": 20}), "train")
    assert same(few[7], many[7])
    assert few.identifier(7) == many.identifier(7) == "scenes-0-train-00007"


def test_the_size_changes_the_picture_and_not_the_room() -> None:
    small, large = Scenes(config(), "val"), Scenes(config(size=(48, 64)), "val")
    assert small.room(1).solids == large.room(1).solids
    assert large[1]["image"].shape == (3, 48, 64)


def test_the_holdout_comes_out_of_the_training_rooms() -> None:
    whole = load_dataset(config(), "train")
    parts = [load_dataset(config(holdout=0.25), split) for split in ("train", "holdout")]
    assert [len(part) for part in parts] == [6, 2]
    names = {part.identifier(i) for part in parts for i in range(len(part))}
    assert names == {whole.identifier(i) for i in range(8)}


def test_a_caller_may_write_on_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cache in ("memory", "disk"):
        dataset = load_dataset(config(cache=cache), "val")
        dataset[0]["image"].zero_()
        dataset[0]["targets"]["depth"].zero_()
        assert dataset[0]["image"].any()
        assert dataset[0]["targets"]["depth"].any()


def test_the_disk_cache_is_found_again_and_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = load_dataset(config(cache="none"), "val")
    first = load_dataset(config(cache="disk"), "val")
    monkeypatch.setattr(Scenes, "_make", lambda *_: pytest.fail("rendered again"))
    again = load_dataset(config(cache="disk"), "val")
    monkeypatch.undo()
    assert all(same(first[i], again[i]) and same(first[i], fresh[i]) for i in range(3))


def test_a_misspelt_option_names_the_right_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(config(options={"trian": 5}), "train")
    assert "data.options.trian" in caught.value.message
    assert "train" in caught.value.hint


def test_a_root_is_refused() -> None:
    with pytest.raises(ConfigError, match="no folder"):
        load_dataset(config(root="somewhere"), "train")


def test_an_unknown_split_lists_the_known() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(config(), "dev")  # type: ignore[arg-type]
    assert "train, val, test" in caught.value.hint
