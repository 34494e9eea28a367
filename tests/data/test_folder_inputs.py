"""Inputs beside the images of a folder of the user's own: pictures named like the images, tables of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import build_loader, check_dataset, load_dataset
from compactmtl.data.base import VisionDataset
from compactmtl.data.inputs import given
from compactmtl.errors import CompactError, ConfigError, DataError
from tests.support.layouts.folder import write_folder

INPUTS: dict[str, Any] = {
    "rgb": {},
    "heat": {"channels": 1, "range": [0, 5000]},
    "pose": {"kind": "vector", "channels": 2},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ten images of 24 x 32 with thermal pictures of half their size, and where each was taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    top = write_folder(tmp_path / "data", count=10)
    (top / "heat").mkdir()
    lines = ["image,x,y"]
    for number in range(10):
        heat = np.full((12, 16), 250 * number, np.uint16)
        Image.fromarray(heat).save(top / f"heat/{number:03d}.png")
        lines.append(f"{number:03d}.jpg,{number},0.5")
    (top / "pose.csv").write_text("\n".join(lines) + "\n")
    return top


def config(root: Path, **fields: Any) -> DataConfig:
    values = {"name": "folder", "size": (24, 32), "root": str(root), "batch_size": 4, "inputs": INPUTS}
    return DataConfig.model_validate(values | fields)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_each_image_has_its_own(root: Path, cache: str) -> None:
    data = config(root, cache=cache)
    dataset = load_dataset(data, "train")
    for index in range(len(dataset)):
        number = int(Path(dataset.identifier(index)).stem)
        others = dataset[index]["others"]
        assert set(others["heat"].flatten().tolist()) == {round(250 * number / 5000 * 255 + 1e-9)}
        assert others["heat"].shape == (1, 24, 32) and others["pose"].tolist() == [number, 0.5]
    batch = next(iter(build_loader(dataset, data, train=False, seed=0)))
    assert [tuple(one.shape[1:]) for one in given(batch)] == [(3, 24, 32), (1, 24, 32), (2,)]
    assert not check_dataset(data).problems


def test_a_disk_cache_does_not_outlive_other_inputs(root: Path) -> None:
    load_dataset(config(root, cache="disk"), "train")
    text = (root / "pose.csv").read_text().replace(",0.5", ",0.75")
    (root / "pose.csv").write_text(text)
    assert load_dataset(config(root, cache="disk"), "train")[0]["others"]["pose"][1] == 0.75
    heat = {**INPUTS, "heat": {"channels": 1}}
    brighter, darker = (
        load_dataset(config(root, cache="disk", inputs=one), "train") for one in (INPUTS, heat)
    )
    assert not torch.equal(brighter[1]["others"]["heat"], darker[1]["others"]["heat"])


def test_dataset_yaml_says_where_they_lie(root: Path) -> None:
    (root / "heat").rename(root / "thermal")
    with pytest.raises(DataError, match="heat: no such folder"):
        load_dataset(config(root), "train")
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text + "inputs: {heat: thermal}\n")
    assert load_dataset(config(root), "train")[0]["others"]["heat"].shape == (1, 24, 32)
    with pytest.raises(ConfigError, match=r"inputs names heat, which data\.inputs does not name"):
        load_dataset(config(root, inputs={"rgb": {}}), "train")


def lacking(root: Path) -> None:
    (root / "heat/003.png").unlink()
    (root / "heat/005.png").unlink()


def of_another_shape(root: Path) -> None:
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(root / "heat/003.png")


def without_a_row(root: Path) -> None:
    lines = (root / "pose.csv").read_text().splitlines()
    (root / "pose.csv").write_text("\n".join(line for line in lines if not line.startswith("004")))


def of_three_columns(root: Path) -> None:
    (root / "pose.csv").write_text("image,x,y,z\n000,1,2,3\n")


def with_a_word(root: Path) -> None:
    (root / "pose.csv").write_text((root / "pose.csv").read_text().replace("002.jpg,2", "002.jpg,two"))


def loaded(root: Path) -> list[VisionDataset]:
    return [load_dataset(config(root), split) for split in ("train", "val")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacking, "2 of 10 images have no picture of input 'heat': 003, 005"),
        (of_another_shape, "003.png: 12x12 pixels .*, its image .*003.jpg is 32x24"),
        (without_a_row, "pose.csv: 1 of 10 images have no vector of input 'pose': 004"),
        (of_three_columns, "pose.csv:1: columns image, x, y, z, expected image and 2 more"),
        (with_a_word, "pose.csv:4: 'two' is not a number"),
    ],
)
def test_what_does_not_fit_names_the_file(root: Path, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(CompactError, match=message):
        loaded(root)
    assert check_dataset(config(root)).problems
