"""The folder format: every kind of target, every way to split, every mistake by file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.tables import UNKNOWN_CLASS
from compactmtl.errors import CompactError, DataError
from tests.support.layouts.folder import DATASET, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path, count=10)


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "folder", "size": (24, 32), "root": str(root)} | fields)


def by_name(root: Path, split: Any, **fields: Any) -> dict[str, dict[str, torch.Tensor]]:
    dataset = load_dataset(config(root, **fields), split)
    return {Path(dataset.identifier(i)).stem: dataset[i]["targets"] for i in range(len(dataset))}


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_every_kind_of_target(cache: str, root: Path) -> None:
    samples = by_name(root, "train", cache=cache) | by_name(root, "val", cache=cache)
    assert len(samples) == 10
    targets = samples["004"]
    assert (targets["segmentation"][0] == 255).all()
    assert set(targets["segmentation"][1:].flatten().tolist()) <= {0, 1, 2}
    assert float(targets["depth"][0, 0, 0]) == pytest.approx(1.004)
    assert not targets["depth"][0, -1].any()
    assert float(targets["normals"][2, 0, 0]) == pytest.approx(-1, abs=1e-4)
    assert targets["things"].tolist() == [-1, 0]  # the table has box before ball
    assert samples["003"]["things"].tolist() == [1, 1]
    assert float(targets["height"]) == 154.5
    assert [int(samples[f"{n:03d}"]["weather"]) for n in range(3)] == [0, 1, 0]


def test_the_scalars_spec_is_of_the_training_images(root: Path) -> None:
    values = torch.stack([t["height"] for t in by_name(root, "train").values()]).double()
    spec = load_dataset(config(root), "val").specs["height"]
    assert spec.unit == "cm"
    assert spec.mean == pytest.approx(float(values.mean()))
    assert spec.std == pytest.approx(float(values.std(correction=0)))


def test_a_scalar_may_be_unknown(root: Path) -> None:
    text = (root / "height.csv").read_text()
    (root / "height.csv").write_text(text.replace("004.jpg,154.5", "004.jpg,"))
    samples = by_name(root, "train") | by_name(root, "val")
    assert samples["004"]["height"].isnan()
    assert sum(int(one["height"].isnan()) for one in samples.values()) == 1
    spec = load_dataset(config(root), "train").specs["height"]
    assert 150 < spec.mean < 160 and 0 < spec.std < 10
    assert check_dataset(config(root)).problems == []


def test_classes_of_a_mask_may_change_places_in_a_mirror_image(root: Path) -> None:
    text = (root / "dataset.yaml").read_text()
    for pair, message in (("[floor, wall]", None), ("[floor, bat]", "mirrored names 'bat'")):
        (root / "dataset.yaml").write_text(text.replace("kind: mask", f"kind: mask, mirrored: [{pair}]"))
        if message is None:
            spec = load_dataset(config(root), "train").specs["segmentation"]
            assert spec.mirrored == (("floor", "wall"),)
        else:
            with pytest.raises(CompactError, match=message):
                load_dataset(config(root), "train")


def test_without_lists_a_fixed_share_is_val_and_this_is_said(root: Path) -> None:
    report = check_dataset(config(root))
    assert report.counts == {"train": 8, "val": 2}
    assert report.problems == []
    assert "20% of the images are val" in report.notes[0]


def test_folders_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path, count=6, split=True)
    assert sorted(by_name(root, "val")) == ["001", "003", "005"]
    assert check_dataset(config(root)).notes == []


def test_lists_split(root: Path) -> None:
    (root / "train.txt").write_text("000.jpg\n001\n\n005.jpg\n")
    (root / "val.txt").write_text("002\n")
    assert sorted(by_name(root, "train")) == ["000", "001", "005"]
    assert list(by_name(root, "val")) == ["002"]
    (root / "val.txt").write_text("002\n005\n")
    with pytest.raises(DataError, match=r"val\.txt: 1 images are in train\.txt too: 005"):
        load_dataset(config(root), "val")
    (root / "val.txt").write_text("002\n77.jpg\n")
    with pytest.raises(DataError, match=r"val\.txt:2: no image 77\.jpg"):
        load_dataset(config(root), "val")
    (root / "val.txt").write_text("images/002.jpg\n")
    with pytest.raises(DataError) as caught:
        load_dataset(config(root), "val")
    assert "did you mean '002'? leave out 'images/'" in caught.value.hint
    (root / "val.txt").write_text("002\n002.jpg\n")
    with pytest.raises(DataError, match=r"val\.txt:2: image 002\.jpg is listed twice, in line 1 too"):
        load_dataset(config(root), "val")


def test_images_in_no_list_are_named(root: Path) -> None:
    (root / "train.txt").write_text("".join(f"{n:03d}\n" for n in range(7)))
    (root / "val.txt").write_text("007\n009\n")
    assert check_dataset(config(root)).notes == ["1 images are in no list and are passed over: 008"]


LACKING: dict[str, tuple[str, Callable[[torch.Tensor], bool]]] = {
    "segmentation": ("segmentation/003.png", lambda value: bool((value == 255).all())),
    "depth": ("depth/003.png", lambda value: not bool(value.any())),
    "normals": ("normals/003.png", lambda value: not bool(value.any())),
    "weather": ("weather.csv", lambda value: int(value) == UNKNOWN_CLASS),
    "things": ("things.csv", lambda value: value.tolist() == [-1, -1]),
    "height": ("height.csv", lambda value: bool(value.isnan())),
}


def take_label(root: Path, file: str, name: str = "003") -> None:
    if file.endswith(".png"):
        (root / file).unlink()
    else:
        lines = (root / file).read_text().splitlines()
        (root / file).write_text("\n".join(line for line in lines if not line.startswith(name)) + "\n")


@pytest.mark.parametrize("target", list(LACKING))
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_an_image_that_lacks_one_label_stays_for_the_other_tasks(cache: str, target: str, root: Path) -> None:
    file, is_unknown = LACKING[target]
    take_label(root, file)
    samples = by_name(root, "train", cache=cache) | by_name(root, "val", cache=cache)
    assert len(samples) == 10
    assert is_unknown(samples["003"][target])
    assert not any(LACKING[name][1](samples["003"][name]) for name in LACKING if name != target)
    report = check_dataset(config(root))
    assert report.problems == []
    counted = {name: sum(split[name] or 0 for split in report.known.values()) for name in LACKING}
    assert counted == {name: 9 if name == target else 10 for name in LACKING}
    assert any(Path(file).parts[0] in note and "003" in note for note in report.notes)


def test_a_mask_without_an_ignore_index_gets_one_where_images_lack_it(root: Path) -> None:
    text = (root / "dataset.yaml").read_text().replace(", ignore_index: 255", "")
    (root / "dataset.yaml").write_text(text)
    for path in (root / "segmentation").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)
    assert load_dataset(config(root), "train").specs["segmentation"].ignore_index is None
    take_label(root, "segmentation/003.png")
    assert load_dataset(config(root), "train").specs["segmentation"].ignore_index == 255
    samples = by_name(root, "train") | by_name(root, "val")
    assert (samples["003"]["segmentation"] == 255).all() and not samples["001"]["segmentation"].any()


def test_an_image_without_any_label_is_passed_over_and_named(root: Path) -> None:
    for file, _ in LACKING.values():
        take_label(root, file)
    report = check_dataset(config(root))
    assert sum(report.counts.values()) == 9
    assert any("1 images have no label of any target and are passed over: 003" in n for n in report.notes)
    told = [getattr(load_dataset(config(root), split), "notes", ()) for split in ("train", "val")]
    assert told[0] == told[1] == tuple(report.notes)


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("dataset.yaml", "kind: mask", "kind: masks", r"dataset\.yaml:3: `targets\.segmentation\.kind`"),
        ("dataset.yaml", "classes: [sun, rain]", "klasses: [sun, rain]", r"dataset\.yaml:\d+: .*klasses"),
        ("dataset.yaml", "[sun, rain]", "[sun]", "at least 2"),
        ("dataset.yaml", "[ball, box]", "[ball, ball]", "twice"),
        ("weather.csv", "image,value", "file,value", r"weather\.csv:1: columns file, value"),
        ("weather.csv", "001.jpg,rain", "001.jpg,snow", r"weather\.csv:3: no class 'snow'"),
        ("weather.csv", "001.jpg", "000.jpg", r"weather\.csv:3: image 000\.jpg is listed twice"),
        ("weather.csv", "001.jpg,rain", "001.jpg,rain,1", r"weather\.csv:3: 3 values, expected 2"),
        ("things.csv", "001,1,1", "001,yes,1", r"things\.csv:3: 'yes'"),
        ("things.csv", "image,box,ball", "image,box,bat", r"things\.csv:1: columns"),
        ("height.csv", "151.5", "nan", r"height\.csv:3: 'nan' is not a number"),
    ],
)
def test_mistakes_are_named_by_file_and_line(file: str, old: str, new: str, match: str, root: Path) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(CompactError, match=match):
        load_dataset(config(root), "train")


@pytest.mark.parametrize("missing", ["dataset.yaml", "images", "height.csv"])
def test_what_is_missing_is_named(missing: str, root: Path) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(DataError, match=missing) as caught:
        load_dataset(config(root), "train")
    assert "docs/how-to/own-data.md" in caught.value.hint


def test_damaged_files_are_named(root: Path) -> None:
    (root / "segmentation" / "002.png").write_bytes(b"x")
    (root / "images" / "005.jpg").write_bytes(b"x")
    problems = " ".join(check_dataset(config(root)).problems)
    assert "segmentation/002.png" in problems and "images/005.jpg" in problems


def test_a_disk_cache_follows_the_tables_and_the_description(root: Path) -> None:
    before = by_name(root, "train", cache="disk")
    name = sorted(before)[0]
    text = (root / "height.csv").read_text()
    old = next(line for line in text.splitlines() if line.startswith(name))
    (root / "height.csv").write_text(text.replace(old, f"{name}.jpg,9.5"))
    assert float(by_name(root, "train", cache="disk")[name]["height"]) == 9.5
    (root / "dataset.yaml").write_text(DATASET.replace("kind: depth", "kind: depth, units_per_metre: 500"))
    after = by_name(root, "train", cache="disk")[name]["depth"]
    assert torch.allclose(after, 2 * before[name]["depth"])


def test_a_mask_of_gray_levels_is_named_with_its_values_and_the_mend(root: Path) -> None:
    for number in (2, 3):
        labels = np.full((24, 32), 128, np.uint8)
        labels[0] = 64
        Image.fromarray(labels).save(root / "segmentation" / f"{number:03d}.png")
    problems = check_dataset(config(root)).problems
    assert all("holds the values 64, 128, expected 0 to 2 or 255 for ignored" in text for text in problems)
    assert sum("a mask holds class numbers, not gray levels" in text for text in problems) == 1


def test_what_looks_wrong_in_ones_own_labels_is_noted(root: Path) -> None:
    for path in (root / "depth").iterdir():
        Image.fromarray(np.full((24, 32), 2, np.uint16)).save(path)
    for path in (root / "images").iterdir():
        Image.fromarray(np.full((24, 32), 4095, np.uint16)).save(path.with_suffix(".png"))
        path.unlink()
    table = root / "weather.csv"
    table.write_text(table.read_text().replace("rain", "sun"))
    notes = "\n".join(check_dataset(config(root)).notes)
    assert "no pixel of the 8 images looked at is above 16 of 255" in notes
    assert "target depth: half of the depths are below 0.002 m" in notes
    assert "target weather: none of rain in the 8 training samples looked at" in notes


def test_a_mask_whose_classes_are_numbers_of_other_places_is_noted(root: Path) -> None:
    text = (root / "dataset.yaml").read_text().replace("[floor, wall, block]", '["1", "2", "3"]')
    (root / "dataset.yaml").write_text(text)
    notes = check_dataset(config(root)).notes
    assert any("class '1' is the value 0 of a mask" in note for note in notes)


def test_a_folder_of_masks_that_fit_no_image_is_a_problem(root: Path) -> None:
    for path in (root / "segmentation").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    with pytest.raises(DataError, match=r"10 of 10 maps belong to no image, such as 000_mask\.png") as caught:
        load_dataset(config(root), "train")
    assert "did you mean '000'?" in caught.value.message
