"""Clothing Co-Parsing: classes, groups, tags and the conversion from the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.ccp import CLASSES, GROUPS, group_table
from compactmtl.errors import ConfigError, DataError
from tests.support.layouts.ccp import drawn, write_ccp, write_ccp_original
from tools.prepare_ccp import main as prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_ccp(tmp_path, count=3)


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "ccp", "size": (48, 32), "root": str(root)} | fields)


def test_every_class_is_in_one_group() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 59
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CLASSES)
    assert [list(GROUPS)[group_table()[CLASSES.index(n)]] for n in ("null", "boots", "purse", "t-shirt")] == [
        "background", "footwear", "bag", "top",
    ]  # fmt: skip


def test_labels_and_tags_agree(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    assert len(dataset) == 3
    for index in range(3):
        targets = dataset[index]["targets"]
        labels = targets["segmentation"]
        np.testing.assert_array_equal(labels.numpy(), drawn(1 + index, (48, 32)))
        assert dataset.specs["tags"].classes == CLASSES[1:]
        present = [number + 1 for number in torch.nonzero(targets["tags"]).flatten().tolist()]
        assert present == sorted(set(labels.flatten().tolist()) - {0})


def test_groups(root: Path) -> None:
    fine = load_dataset(config(root), "val")
    coarse = load_dataset(config(root, options={"classes": "grouped"}), "val")
    assert coarse.specs["segmentation"].classes == tuple(GROUPS)
    assert coarse.specs["tags"].classes == tuple(GROUPS)[1:]
    table = torch.from_numpy(group_table().astype(np.int64))
    for index in range(3):
        targets = coarse[index]["targets"]
        assert torch.equal(targets["segmentation"], table[fine[index]["targets"]["segmentation"]])
        groups = set(targets["segmentation"].flatten().tolist())
        assert [i + 1 in groups for i in range(10)] == targets["tags"].bool().tolist()


def test_tags_are_of_the_whole_label_map(root: Path) -> None:
    tiny = load_dataset(config(root, size=(2, 1)), "train")[0]["targets"]
    assert len(set(tiny["segmentation"].flatten().tolist())) <= 2
    assert tiny["tags"].sum() >= 4


def test_chosen_tags(root: Path) -> None:
    options = {"classes": "grouped", "tags": ["footwear", "bag"]}
    tags = load_dataset(config(root, options=options), "train")[0]["targets"]["tags"]
    assert tags[0] == 1 and tags.shape == (2,)
    for wrong, match in ((["shoe"], "'shoe'"), ([], "empty")):
        with pytest.raises(ConfigError, match=match):
            load_dataset(config(root, options={"tags": wrong}), "train")


def test_the_split_is_by_number(root: Path) -> None:
    names = [Path(load_dataset(config(root), s).identifier(0)).stem for s in ("train", "val", "test")]
    assert names == ["0001", "0805", "0905"]


def test_odd_label_maps_are_noted_and_damage_is_named(root: Path) -> None:
    (root / "labels" / "notes.png").write_bytes((root / "labels" / "0001.png").read_bytes())
    (root / "images" / "0002.jpg").unlink()
    (root / "images" / "0806.jpg").write_bytes(b"x")
    report = check_dataset(config(root))
    assert "2 label maps have no photo" in report.notes[0]
    assert "0806.jpg" in report.problems[0]
    assert report.counts["train"] == 2


def test_other_classes_are_refused(root: Path) -> None:
    (root / "tags.json").write_text(json.dumps({"classes": ["null", "hat"]}))
    with pytest.raises(DataError, match="not the 59"):
        load_dataset(config(root), "train")
    (root / "tags.json").write_text("{")
    with pytest.raises(DataError, match=r"tags\.json"):
        load_dataset(config(root), "train")


def test_the_original_is_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_ccp_original(tmp_path / "repository"), tmp_path / "out"
    with pytest.raises(DataError, match=r"\.mat") as caught:
        load_dataset(config(source), "train")
    assert "prepare_ccp" in caught.value.hint
    assert prepare([str(source), str(out), "--height", "24"]) == 0
    assert "3 photos converted, 0 were there" in capsys.readouterr().out
    assert prepare([str(source), str(out), "--height", "24"]) == 0
    assert "0 photos converted, 3 were there" in capsys.readouterr().out
    dataset = load_dataset(config(out, size=(24, 16)), "train")
    assert len(dataset) == 3
    labels = dataset[1]["targets"]["segmentation"].numpy()
    np.testing.assert_array_equal(labels, drawn(2, (48, 32))[1::2, 1::2])
    tags = json.loads((out / "tags.json").read_text())
    assert tags["tags_image_level_only"] == {"1005": [19, 41]}
    assert tags["tags_from_pixels"]["0002"] == np.unique(labels).tolist()


def test_a_broken_mat_file_is_named_and_the_others_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_ccp_original(tmp_path / "repository")
    (source / "annotations/pixel-level/0002.mat").write_bytes(b"not MATLAB")
    assert prepare([str(source), str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "2 photos converted" in printed.out and "0002.mat" in printed.err


def test_a_height_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        prepare([str(tmp_path), str(tmp_path / "out"), "--height", "0"])
    assert caught.value.code == 2
    assert "--height needs at least 1" in capsys.readouterr().err
