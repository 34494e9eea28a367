"""Cityscapes in its two layouts: values, units, parts, what is missing, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.cityscapes_labels import CLASSES_7, CLASSES_19, PARTS, label_table, parts_of
from compactmtl.data.labels import known_labels
from compactmtl.errors import ConfigError, DataError
from tests.support.layouts.cityscapes import BASELINE, FX, write_cityscapes, write_cityscapes_npy

SIZE = (64, 128)


def config(root: Path, **fields: Any) -> DataConfig:
    given = {"name": "cityscapes", "size": SIZE, "root": str(root), "cache": "none"} | fields
    return DataConfig.model_validate(given)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"))


def test_19_classes_have_their_train_ids_and_nest_in_7() -> None:
    nineteen, seven = label_table(19), label_table(7)
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert nineteen[evaluated].tolist() == list(range(19))
    assert set(nineteen) == {*range(19), 255}
    assert ((seven == 255) == (nineteen == 255)).all()
    assert [CLASSES_7[seven[i]] for i in (8, 12, 17, 22, 23, 25, 33)] == list(CLASSES_7)
    assert CLASSES_19[nineteen[33]] == "bicycle"


@pytest.mark.parametrize(
    ("uid", "part"),
    [
        (7, "background"),
        (26_001, "background"),
        (2_600_102, "wheels"),
        (2_701_205, "chassis"),
        (2_800_001, "windows"),
        (2_400_001, "torso"),
        (2_500_304, "legs"),
        (2_499_902, "head"),
        (2_400_005, "background"),  # a fifth part that people don't have
        (2_600_100, "background"),
        (3_100_101, "background"),  # trains have no parts
    ],
)
def test_parts(uid: int, part: str) -> None:
    assert PARTS[int(parts_of(np.array([[uid]], np.int32))[0, 0])] == part


def test_frames_by_city(root: Path) -> None:
    train = load_dataset(config(root), "train")
    assert (len(train), len(load_dataset(config(root), "val"))) == (6, 3)
    assert train.identifier(3).endswith("leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png")
    with pytest.raises(DataError, match="no split 'test'"):
        load_dataset(config(root), "test")


@pytest.mark.parametrize(
    ("classes", "names"), [(7, ("sky", "flat", "human", "vehicle")), (19, ("sky", "road", "person", "car"))]
)
def test_segmentation(root: Path, classes: int, names: tuple[str, ...]) -> None:
    dataset = load_dataset(config(root, options={"classes": classes}), "val")
    mask = dataset[0]["targets"]["segmentation"]
    found = [
        dataset.specs["segmentation"].classes[int(mask[at])] for at in ((0, 0), (40, 0), (40, 62), (40, 100))
    ]
    assert tuple(found) == names
    assert (mask[-1] == 255).all()


def test_disparity_in_pixels(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    disparity = dataset[0]["targets"]["disparity"]
    assert dataset.specs["disparity"].unit == "px"
    assert (disparity[:, :32] == 0).all()
    torch.testing.assert_close(disparity[0, 32:, 5], torch.arange(1.0, 33.0))
    assert dataset.specs["disparity"].mean == pytest.approx(16.5)


def test_inverse_depth_follows_each_cameras_calibration(root: Path) -> None:
    dataset = load_dataset(config(root, options={"disparity": "1/m"}), "train")
    inverse = dataset[0]["targets"]["disparity"]
    # A disparity of 10 pixels is seen at fx b / 10 metres.
    assert 1 / float(inverse[0, 41, 7]) == pytest.approx(FX * BASELINE / 10, rel=1e-5)
    assert dataset.specs["disparity"].unit == "1/m"


def test_part_segmentation(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    parts = dataset[0]["targets"]["parts"]
    at = [PARTS[int(parts[place])] for place in ((0, 0), (40, 100), (55, 100), (40, 61))]
    assert at == ["background", "background", "wheels", "head"]


def test_sizes_are_sampled_and_never_mixed(root: Path) -> None:
    small = load_dataset(config(root, size=(16, 32)), "train")[0]["targets"]
    whole = load_dataset(config(root), "train")[0]["targets"]
    assert torch.equal(small["segmentation"], whole["segmentation"][2::4, 2::4])
    assert torch.equal(small["disparity"], whole["disparity"][:, 2::4, 2::4])


def test_what_is_not_there_is_no_target_and_the_check_says_where_to_get_it(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, disparity=False, parts=False, camera=False)
    assert set(load_dataset(config(tmp_path), "train").specs) == {"segmentation"}
    report = check_dataset(config(tmp_path))
    assert report.problems == []
    assert [note.split(":")[0] for note in report.notes] == ["no disparity", "no parts"]
    assert "disparity_trainvaltest.zip" in report.notes[0]


def test_inverse_depth_without_calibration_is_refused(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, camera=False)
    with pytest.raises(DataError, match="camera: no such folder"):
        load_dataset(config(tmp_path, options={"disparity": "1/m"}), "train")
    assert "disparity" in load_dataset(config(tmp_path), "train").specs


def test_damaged_missing_and_unlabeled_files_are_named(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    city = "train/ulm/ulm_000001_000019"
    disparity = tmp_path / "disparity" / f"{city}_disparity.png"
    disparity.write_bytes(disparity.read_bytes()[:-3])
    (tmp_path / "gtFinePanopticParts" / f"{city}_gtFinePanopticParts.tif").unlink()
    (tmp_path / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelIds.png").unlink()
    report = check_dataset(config(tmp_path))
    assert report.problems == [f"{disparity}: cut short"]
    assert "1 frames of val have no labels: lindau_000000_000019" in report.notes
    assert "1 of the frames of train have no parts, which is unknown there: ulm_000001_000019" in report.notes


def test_a_file_that_is_not_there_is_unknown_to_its_task_alone(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    frame = "train/ulm/ulm_000001_000019"
    before = load_dataset(config(tmp_path, options={"disparity": "1/m"}), "train")
    whole = [before[index] for index in range(len(before))]
    (tmp_path / "gtFinePanopticParts" / f"{frame}_gtFinePanopticParts.tif").unlink()
    (tmp_path / "camera" / f"{frame}_camera.json").unlink()
    dataset = load_dataset(config(tmp_path, options={"disparity": "1/m"}), "train")
    assert len(dataset) == len(whole)
    one = next(n for n in range(len(dataset)) if "ulm_000001" in dataset.identifier(n))
    now = dataset[one]["targets"]
    assert torch.equal(whole[one]["targets"]["segmentation"], now["segmentation"])
    assert (now["parts"] == 255).all() and not now["disparity"].any()
    (tmp_path / "gtFine" / f"{frame}_gtFine_labelIds.png").unlink()
    (tmp_path / "camera" / f"{frame}_camera.json").write_text(
        '{"intrinsic": {"fx": 2262}, "extrinsic": {"baseline": 0.2}}'
    )
    dataset = load_dataset(config(tmp_path, options={"disparity": "1/m"}), "train")
    assert known_labels(dataset, dataset.specs) == {
        "segmentation": len(dataset) - 1,
        "disparity": len(dataset),
        "parts": len(dataset) - 1,
    }
    assert (dataset[one]["targets"]["segmentation"] == 255).all()
    assert dataset[one]["targets"]["disparity"].any()
    (tmp_path / "disparity" / f"{frame}_disparity.png").unlink()
    assert len(load_dataset(config(tmp_path), "train")) == len(whole) - 1  # nothing is known of it


def test_of_numbered_arrays_too_a_missing_one_is_unknown(tmp_path: Path) -> None:
    write_cityscapes_npy(tmp_path)
    (tmp_path / "train" / "depth" / "1.npy").unlink()
    dataset = load_dataset(config(tmp_path), "train")
    assert known_labels(dataset, dataset.specs) == {"segmentation": 3, "disparity": 2}
    assert not dataset[1]["targets"]["disparity"].any()
    assert any(
        "have no disparity, which is unknown there: 1" in note
        for note in check_dataset(config(tmp_path)).notes
    )


def test_colored_labels_and_8_bit_disparity_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    write_cityscapes(tmp_path, count=1)
    for name, mode, said in (
        ("gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", "RGB", "found 3 channels"),
        ("gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", "L", "label 200 is none of 0 to 33"),
        ("disparity/train/ulm/ulm_000000_000019_disparity.png", "L", "expected 16 bits"),
    ):
        before = (tmp_path / name).read_bytes()
        Image.new(mode, (128, 64), (200, 9, 9) if mode == "RGB" else 200).save(tmp_path / name)
        problems = check_dataset(config(tmp_path)).problems
        assert problems
        assert name in problems[0]
        assert said in problems[0]
        (tmp_path / name).write_bytes(before)
    assert check_dataset(config(tmp_path)).problems == []


def test_disparity_may_be_unknown_everywhere(tmp_path: Path) -> None:
    from PIL import Image

    write_cityscapes(tmp_path, count=2)
    name = "disparity/train/ulm/ulm_000000_000019_disparity.png"
    Image.fromarray(np.zeros((64, 128), np.uint16)).save(tmp_path / name)
    assert check_dataset(config(tmp_path)).problems == []
    dataset = load_dataset(config(tmp_path), "train")
    dark = [i for i in range(len(dataset)) if "ulm_000000_000019" in dataset.identifier(i)]
    assert len(dark) == 1
    assert not dataset[dark[0]]["targets"]["disparity"].any()


def test_a_calibration_that_is_none_is_named(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, count=1)
    path = tmp_path / "camera/train/ulm/ulm_000000_000019_camera.json"
    path.write_text('{"intrinsic": {}}')
    # The statistic over training frames already reads it.
    with pytest.raises(DataError, match=r"ulm_000000_000019_camera\.json: not a camera's calibration"):
        load_dataset(config(tmp_path, options={"disparity": "1/m"}), "train")


def test_arrays_of_mtan(tmp_path: Path) -> None:
    write_cityscapes_npy(tmp_path)
    for classes in (7, 19):
        dataset = load_dataset(config(tmp_path, size=(32, 64), options={"classes": classes}), "val")
        want = np.load(tmp_path / f"val/label_{classes}/1.npy")
        got = dataset[1]["targets"]["segmentation"].numpy()
        assert np.array_equal(np.where(got == 255, -1, got), want)
        assert np.array_equal(
            dataset[1]["targets"]["disparity"][0].numpy(), np.load(tmp_path / "val/depth/1.npy")[..., 0]
        )
        assert dataset.specs["disparity"].unit == ""
    assert check_dataset(config(tmp_path)).problems == []
    with pytest.raises(ConfigError, match="unit of its own"):
        load_dataset(config(tmp_path, options={"disparity": "1/m"}), "val")


def test_arrays_cut_short_or_out_of_range_are_named(tmp_path: Path) -> None:
    write_cityscapes_npy(tmp_path)
    image, label = tmp_path / "train/image/1.npy", tmp_path / "val/label_7/0.npy"
    image.write_bytes(image.read_bytes()[:-100])
    np.save(label, np.full((32, 64), 7.0))
    problems = check_dataset(config(tmp_path)).problems
    assert any(str(image) in problem and "not a whole .npy" in problem for problem in problems)
    assert any(str(label) in problem and "holds the value 7" in problem for problem in problems)


def test_missing_label_folders_name_those_that_are_there(tmp_path: Path) -> None:
    import shutil

    write_cityscapes_npy(tmp_path)
    shutil.rmtree(tmp_path / "train" / "label_19")
    with pytest.raises(ConfigError, match=r"no label_19 \(found: label_7\)"):
        load_dataset(config(tmp_path, options={"classes": 19}), "train")


def test_a_missing_folder_says_where_to_get_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gtFine_trainvaltest\.zip"):
        load_dataset(config(tmp_path), "train")
