"""UTKFace in its real layouts: names, splits, damaged files, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import load_dataset
from compactmtl.data.utkface import SPLITS, UTKFace, list_split, parse_name
from compactmtl.errors import ConfigError, DataError

AGES = (1, 7, 26, 26, 40, 63, 99, 116, 18, 33)


def write_face(folder: Path, age: int, number: int = 0, name: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{age}_{number % 2}_{number % 5}_2017010416555{number:04d}.jpg.chip.jpg")
    Image.fromarray(np.full((20, 16, 3), 2 * age, np.uint8)).save(path, format="JPEG")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, age in enumerate(AGES):
        write_face(tmp_path / "UTKFace" / "train", age, number)
    for number, age in enumerate(AGES[:4]):
        write_face(tmp_path / "UTKFace" / "val", age, number + 20)
    return tmp_path


def config(root: Path | None, **fields: Any) -> DataConfig:
    given = {"name": "utkface", "size": (8, 12), "root": None if root is None else str(root)} | fields
    return DataConfig.model_validate(given)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("26_0_2_20170104165550.jpg.chip.jpg", (26, 0, 2)),
        ("1_1_4_20161219.jpg", (1, 1, 4)),
        ("116_0_0_20170112215240346.png", (116, 0, 0)),
        ("24_0_1_20170116220224657 .jpg.chip.jpg", None),
        ("39_1_20170116174525125.jpg.chip.jpg", None),
        ("55_0_0_20170116232725357jpg.chip.jpg", None),
        ("0_0_0_20170104.jpg", None),
        ("117_0_0_20170104.jpg", None),
        ("26_2_2_20170104.jpg", None),
        ("26_0_5_20170104.jpg", None),
        ("x26_0_2_20170104.jpg", None),
    ],
)
def test_names(name: str, labels: tuple[int, int, int] | None) -> None:
    face = parse_name(Path(name))
    assert (face and (face.age, face.gender, face.ethnicity)) == labels


def test_formats_are_those_of_the_specification(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    assert len(dataset) == 10
    by_age = {int(dataset[i]["targets"]["age"]): dataset[i] for i in range(10)}
    sample = by_age[99]
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 8, 12))
    gray = float(sample["image"].float().mean())
    assert abs(gray - 198) < 3  # twice the age, but for JPEG's loss
    assert sample["targets"]["age"].dtype == torch.float32
    assert sample["targets"]["gender"].dtype == sample["targets"]["ethnicity"].dtype == torch.int64
    assert (int(sample["targets"]["gender"]), int(sample["targets"]["ethnicity"])) == (0, 1)


def test_the_age_spec_has_the_training_faces_mean_and_deviation(root: Path) -> None:
    for split in ("train", "val"):
        spec = load_dataset(config(root), split).specs["age"]
        assert spec.mean == pytest.approx(float(np.mean(AGES)))
        assert spec.std == pytest.approx(float(np.std(AGES)))
        assert spec.unit == "years"


def test_the_folder_itself_may_be_the_root(root: Path) -> None:
    assert len(load_dataset(config(root / "UTKFace"), "val")) == 4


def test_a_flat_folder_is_split_80_to_20_and_always_alike(tmp_path: Path) -> None:
    for number in range(50):
        write_face(tmp_path / "UTKFace", number + 1, number)
    train, val = (list_split(str(tmp_path), split).faces for split in SPLITS[:2])
    assert (len(train), len(val)) == (40, 10)
    assert not {face.path for face in train} & {face.path for face in val}
    write_face(tmp_path / "UTKFace", 1, 77)
    again = list_split(str(tmp_path), "val").faces
    assert len({face.path for face in again} & {face.path for face in val}) >= 9
    with pytest.raises(DataError, match="no test split"):
        list_split(str(tmp_path), "test")


def test_the_holdout_comes_out_of_training(root: Path) -> None:
    kept, held = (load_dataset(config(root, holdout=0.3), split) for split in ("train", "holdout"))
    assert (len(kept), len(held)) == (7, 3)
    names = {part.identifier(i) for part in (kept, held) for i in range(len(part))}
    assert len(names) == 10
    with pytest.raises(ConfigError, match=r"data\.holdout"):
        load_dataset(config(root), "holdout")


def test_names_that_do_not_parse_are_counted_and_passed_over(root: Path) -> None:
    write_face(root / "UTKFace" / "train", 5, name="39_1_20170116174525125.jpg.chip.jpg")
    (root / "UTKFace" / "train" / "readme.txt").write_text("hello")
    dataset = UTKFace(config(root), "train")
    assert len(dataset) == 10
    assert dataset.unparsed == ("39_1_20170116174525125.jpg.chip.jpg",)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_damaged_image_is_found_at_load(cache: str, root: Path) -> None:
    bad = root / "UTKFace" / "train" / "30_0_0_20170101.jpg"
    bad.write_bytes(b"\xff\xd8\xff not a picture")
    with pytest.raises(DataError, match="30_0_0_20170101"):
        load_dataset(config(root, cache=cache), "train")


def test_without_a_cache_a_damaged_image_is_found_when_read(root: Path) -> None:
    (root / "UTKFace" / "val" / "30_0_0_20170101.jpg").write_bytes(b"")
    dataset = load_dataset(config(root, cache="none"), "val")
    bad = next(i for i in range(5) if "30_0_0_20170101" in dataset.identifier(i))
    with pytest.raises(DataError, match="30_0_0_20170101"):
        dataset[bad]


@pytest.mark.parametrize("case", ["no root", "missing", "a file", "empty", "no names", "no val"])
def test_what_is_missing_says_how_to_mend_it(case: str, tmp_path: Path, root: Path) -> None:
    other = tmp_path / "other"
    here: Path | None = other
    match case:
        case "no root":
            here = None
        case "a file":
            other.write_text("")
        case "empty":
            other.mkdir()
        case "no names":
            write_face(other, 3, name="face.jpg")
        case "no val":
            write_face(other / "train", 3)
    with pytest.raises(DataError) as caught:
        load_dataset(config(here), "val")
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_the_disk_cache_follows_the_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = load_dataset(config(root, cache="disk"), "val")
    cached = tmp_path / "xdg" / "compactmtl" / "utkface"
    assert len(list(cached.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(UTKFace, "_make", lambda *_: pytest.fail("decoded again"))
        again = load_dataset(config(root, cache="disk"), "val")
    assert all(torch.equal(first[i]["image"], again[i]["image"]) for i in range(4))
    write_face(root / "UTKFace" / "val", 50, 9)
    assert len(load_dataset(config(root, cache="disk"), "val")) == 5
    load_dataset(config(root, cache="disk", size=(9, 9)), "val")
    assert len(list(cached.iterdir())) == 3


def test_the_bins_of_age_hold_the_age(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    spec = dataset.specs["age_bin"]
    assert spec.classes == ("1-2", "3-9", "10-20", "21-27", "28-45", "46-65", "66-116")
    for index in range(len(dataset)):
        targets = dataset[index]["targets"]
        low, high = map(int, spec.classes[int(targets["age_bin"])].split("-"))
        assert low <= targets["age"] <= high
        assert targets["age_bin"].dtype == torch.int64


def test_bins_of_ones_own(root: Path) -> None:
    dataset = load_dataset(config(root, options={"age_bins": [1, 26]}), "train")
    assert dataset.specs["age_bin"].classes == ("1", "2-26", "27-116")
    found = {int(dataset[i]["targets"]["age"]): int(dataset[i]["targets"]["age_bin"]) for i in range(10)}
    assert (found[1], found[7], found[26], found[33], found[116]) == (0, 1, 1, 2, 2)


@pytest.mark.parametrize("bounds", [[], [9, 2], [2, 2], [0, 5], [20, 116]])
def test_bins_that_are_no_bins_are_refused(bounds: list[int], root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.age_bins"):
        load_dataset(config(root, options={"age_bins": bounds}), "train")


def test_an_unknown_option_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.crop"):
        load_dataset(config(root, options={"crop": True}), "train")
