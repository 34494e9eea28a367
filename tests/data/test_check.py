"""What the check says and draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.check import describe_target, sample_sheet
from compactmtl.errors import ConfigError
from compactmtl.tasks import TargetSpec


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for split, count in (("train", 8), ("val", 3)):
        folder = tmp_path / "UTKFace" / split
        folder.mkdir(parents=True)
        for number in range(count):
            path = folder / f"{10 + 5 * number}_{number % 2}_1_2017010{number}.jpg"
            gray = 20 * number + (10 if split == "val" else 0)
            Image.fromarray(np.full((16, 16, 3), gray, np.uint8)).save(path)
    return tmp_path


def config(root: Path) -> DataConfig:
    return DataConfig(name="utkface", size=(8, 8), root=str(root))


def test_counts_and_distributions(faces: Path) -> None:
    report = check_dataset(config(faces))
    assert (report.counts, report.problems, report.notes) == ({"train": 8, "val": 3}, [], [])
    assert "mean 27.5" in report.targets["age"]
    assert "male 50.0%, female 50.0%" in report.targets["gender"]
    assert "Black 100.0%" in report.targets["ethnicity"]


def test_names_that_do_not_parse_are_noted_with_examples(faces: Path) -> None:
    source = next((faces / "UTKFace" / "train").iterdir())
    (faces / "UTKFace" / "val" / "39_1_20170116.jpg").write_bytes(source.read_bytes())
    report = check_dataset(config(faces))
    assert report.problems == []
    assert "1 names do not parse" in report.notes[0]
    assert "39_1_20170116.jpg" in report.notes[0]


def test_damaged_images_are_problems_by_name(faces: Path) -> None:
    for number in range(12):
        (faces / "UTKFace" / "train" / f"30_0_0_{number}.jpg").write_bytes(b"")
    report = check_dataset(config(faces))
    assert len(report.problems) == 11
    assert "30_0_0_0.jpg" in report.problems[0]
    assert "2 more damaged images in train" in report.problems[-1]
    assert report.counts == {"train": 20, "val": 3}


def test_an_image_in_two_splits_is_noted(faces: Path) -> None:
    source = faces / "UTKFace" / "train" / "20_0_1_20170102.jpg"
    assert check_dataset(config(faces)).notes == []
    (faces / "UTKFace" / "val" / "21_0_1_20170109.jpg").write_bytes(source.read_bytes())
    (note,) = check_dataset(config(faces)).notes
    assert "1 images are in two splits" in note
    assert "21_0_1_20170109.jpg" in note


def test_a_missing_split_or_root_is_a_problem_and_not_an_error(faces: Path, tmp_path: Path) -> None:
    (faces / "UTKFace" / "val").rename(faces / "UTKFace" / "old")
    assert "val: no such folder" in check_dataset(config(faces)).problems[0]
    nowhere = check_dataset(config(tmp_path / "nowhere"))
    assert nowhere.counts == {}
    assert "download" in nowhere.problems[0]


def test_a_wrong_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.trains"):
        check_dataset(DataConfig(name="scenes", size=(8, 8), options={"trains": 3}))


def test_a_look_at_faces_leaves_no_cache(faces: Path) -> None:
    check_dataset(config(faces).model_copy(update={"cache": "disk"}))
    assert [path.name for path in (faces / "UTKFace").iterdir() if path.name.startswith(".")] == []


def test_scenes_have_every_target_described() -> None:
    small = DataConfig(name="scenes", size=(12, 16), options={"train": 4, "val": 2, "test": 2}, holdout=0.5)
    report = check_dataset(small)
    assert report.counts == {"train": 2, "val": 2, "test": 2, "holdout": 2}
    assert "11 classes" in report.targets["segmentation"]
    assert "depth, m" in report.targets["depth"]
    assert report.targets["normals"] == "normals: known 100.0%"


def test_the_sheet_shows_the_images_and_their_maps() -> None:
    dataset = load_dataset("scenes", "val", size=(96, 128), options={"val": 3})
    sheet = sample_sheet(dataset, 2)
    tile = dataset[0]["image"].numpy().transpose(1, 2, 0).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(sheet[24 : 24 + 192, 6 : 6 + 256], tile)
    assert sheet.shape[1] > 4 * 256
    assert sheet[24:216, 6 + 262 : 6 + 262 + 256].std() > 10  # the mask beside it


def test_the_sheet_of_faces_has_words(faces: Path) -> None:
    sheet = sample_sheet(load_dataset(config(faces), "val"), 3)
    words = sheet[24:, 6 + 160 + 12 :]
    assert (words < 100).sum() > 500  # ink


@pytest.mark.parametrize(
    ("spec", "values", "expected"),
    [
        (
            TargetSpec("multilabel", classes=("Hat", "Young")),
            [[1, -1], [0, 1], [1, 1], [0, -1]],
            "multilabel, 2 classes: Hat 50.0%, Young 100.0%; unknown 25.0%",
        ),
        (
            TargetSpec("disparity", unit="px"),
            [[[[0, 8], [8, 8]]], [[[8, 8], [8, 8]]]],
            "disparity, px: 5/50/95 % 8/8/8, range 8 to 8; known 87.5%",
        ),
        (
            TargetSpec("instances", classes=("cat", "dog")),
            [[[[1, 2], [0, -1]], [[0, 0], [0, 1]]], [[[0, 0], [0, 3]], [[0, 0], [0, 1]]]],
            "instances, 2 classes: 1.5 an image, at most 2; pixels of instances 37.5%, of crowds 12.5%",
        ),
        (
            TargetSpec("scalar", unit="years"),
            [20, float("nan"), 40, 30],
            "scalar, years: mean 30.0, std 8.2, 5/50/95 % 21/30/39, range 20 to 40; unknown 25.0%",
        ),
    ],
)
def test_a_target_is_described_in_a_line(spec: TargetSpec, values: list[object], expected: str) -> None:
    assert describe_target(spec, np.array(values, np.float64)) == expected
