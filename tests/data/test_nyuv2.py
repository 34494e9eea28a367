"""NYUv2 in its three layouts: values, splits, classes, normals, damage."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from compactmtl.config.recipe import DataConfig
from compactmtl.data import build_loader, check_dataset, load_dataset
from compactmtl.data.labels import known_labels
from compactmtl.data.nyuv2 import turned
from compactmtl.data.nyuv2_labels import (
    CLASSES_13,
    CLASSES_40,
    CLASSES_41,
    FRAMES,
    label_table,
    official_split,
)
from compactmtl.data.nyuv2_mat import MatFile
from compactmtl.errors import ConfigError, DataError, MissingDependencyError
from tests.support.layouts.nyuv2 import planes, write_nyuv2, write_nyuv2_npy, write_nyuv2_png


def config(root: Path, **fields: Any) -> DataConfig:
    given = {"name": "nyuv2", "size": (48, 64), "root": str(root), "cache": "none"} | fields
    return DataConfig.model_validate(given)


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyuv2(tmp_path_factory.mktemp("mat"))


def angle(one: torch.Tensor, normal: np.ndarray) -> float:
    """Mean degrees over the pixels that are known."""
    known = one.abs().sum(0) > 0
    cosine = (one * torch.from_numpy(normal).float().view(3, 1, 1)).sum(0)[known].clamp(-1, 1)
    return float(torch.rad2deg(cosine.arccos()).mean())


def test_the_official_split_is_of_795_and_654_frames() -> None:
    train, test = official_split()
    assert (len(train), len(test)) == (795, 654)
    assert sorted(train + test) == list(range(FRAMES))
    # The first frames of splits.mat, counted from 1: to test are 1, 2, 9, 14; to train 3 to 8.
    assert test[:4] == (0, 1, 8, 13)
    assert train[:6] == (2, 3, 4, 5, 6, 7)


def test_every_label_has_a_class_and_the_classes_nest() -> None:
    forty, thirteen, all_of_them = label_table(40), label_table(13), label_table(41)
    assert forty[0] == thirteen[0] == 255
    assert all_of_them[0] == 0
    assert np.array_equal(all_of_them[1:], forty[1:] + 1)
    assert set(forty[1:]) == set(range(40))
    assert set(thirteen[1:]) == set(range(13))
    for label in range(1, 895):  # one class of 13 for each of 40
        assert len(set(thirteen[1:][forty[1:] == forty[label]])) == 1
    assert (len(CLASSES_13), len(CLASSES_40), len(CLASSES_41)) == (13, 40, 41)


@pytest.mark.parametrize(
    ("label", "forty", "thirteen"),
    [
        (5, "chair", "chair"),
        (21, "wall", "wall"),
        (28, "door", "wall"),
        (157, "bed", "bed"),
        (141, "clothes", "objects"),
        (894, "otherprop", "objects"),
        (12, "otherfurniture", "furniture"),
        (8, "otherstructure", "objects"),
    ],
)
def test_labels_of_the_file(label: int, forty: str, thirteen: str) -> None:
    assert CLASSES_40[label_table(40)[label]] == forty
    assert CLASSES_13[label_table(13)[label]] == thirteen


def test_frames_of_the_file_come_out_as_they_went_in(mat: Path) -> None:
    dataset = load_dataset(config(mat, options={"classes": 40}), "train")
    assert len(dataset) == 4
    assert dataset.identifier(1).endswith("nyu_depth_v2_labeled.mat#0002")
    for index, frame in enumerate(planes(6, (48, 64))[:4]):
        sample = dataset[index]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), frame.image)
        assert np.array_equal(sample["targets"]["depth"][0].numpy(), frame.depth)
        segmentation = sample["targets"]["segmentation"]
        assert CLASSES_40[segmentation[0, 10]] == "wall"
        assert CLASSES_40[segmentation[-1, 0]] == "bed"
        assert CLASSES_40[segmentation[0, -1]] == "box"
        assert CLASSES_40[segmentation[-1, -1]] == "chair"
        assert (segmentation[:3, :3] == 255).all()
        # 0.1: inverse depth in single precision over a window of two pixels' radius.
        assert angle(sample["targets"]["normals"], frame.normal) < 0.1


def test_val_is_the_test_set_and_there_is_no_other(mat: Path) -> None:
    assert len(load_dataset(config(mat), "val")) == 2
    with pytest.raises(DataError, match="no split 'test'"):
        load_dataset(config(mat), "test")


def test_raw_depth_has_its_holes_and_so_have_the_normals(mat: Path) -> None:
    targets = load_dataset(config(mat, options={"depth": "raw"}), "train")[0]["targets"]
    assert (targets["depth"][:, :4] == 0).all()
    assert (targets["depth"][:, 4:] > 0).all()
    assert (targets["normals"][:, :4] == 0).all()


def test_a_holdout_takes_whole_scenes(mat: Path) -> None:
    given = config(mat, holdout=0.5)
    names = [
        {load_dataset(given, split).identifier(i)[-4:] for i in range(2)} for split in ("train", "holdout")
    ]
    assert sorted(map(sorted, names)) == [["0001", "0002"], ["0003", "0004"]]


def test_workers_read_the_file_each_for_itself(mat: Path) -> None:
    given = config(mat, batch_size=2, workers=2)
    loader = build_loader(load_dataset(given, "train"), given, train=False, seed=0)
    alone = config(mat, batch_size=2)
    plain = build_loader(load_dataset(alone, "train"), alone, train=False, seed=0)
    for one, other in zip(loader, plain, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["targets"]["depth"], other["targets"]["depth"])


def test_without_a_split_file_other_than_1449_frames_are_refused(tmp_path: Path) -> None:
    write_nyuv2(tmp_path, split=False)
    with pytest.raises(DataError, match=r"holds 6 frames.*1449.*\n.*splits.mat"):
        load_dataset(config(tmp_path), "train")


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([1, 2], [2, 3], "1 frames are both"),
        ([0, 1], [2], "trainNdxs are 0 to 1"),
        ([1], [7], "testNdxs are 7"),
    ],
)
def test_a_split_file_that_does_not_fit(tmp_path: Path, train: list[int], test: list[int], said: str) -> None:
    write_nyuv2(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array(train), "testNdxs": np.array(test)})
    with pytest.raises(DataError, match=said):
        load_dataset(config(tmp_path), "train")


def test_a_split_file_that_is_none(tmp_path: Path) -> None:
    write_nyuv2(tmp_path)
    (tmp_path / "splits.mat").write_text("<html>not found</html>" * 20)
    with pytest.raises(DataError, match=r"splits.mat: not a MATLAB 5 file"):
        load_dataset(config(tmp_path), "train")


def test_a_file_cut_short_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    path = write_nyuv2(tmp_path) / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[:5000])
    report = check_dataset(config(tmp_path))
    assert "nyu_depth_v2_labeled.mat: not a whole MATLAB 7.3 file" in report.problems[0]
    assert "horatio.cs.nyu.edu" in report.problems[0]


def test_a_file_of_other_labels_or_without_depth_is_refused(tmp_path: Path) -> None:
    for name in ("names", "depths"):
        (tmp_path / name).mkdir()
    write_nyuv2(tmp_path / "names", names=["thing"] * 894)
    with pytest.raises(DataError, match="label 21 is 'thing', in NYUv2 it is 'wall'"):
        load_dataset(config(tmp_path / "names"), "train")
    write_nyuv2(tmp_path / "depths", without=["depths"])
    with pytest.raises(DataError, match="has no depths"):
        load_dataset(config(tmp_path / "depths"), "train")


def test_without_h5py_the_extra_is_named(mat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match="datasets") as caught:
        load_dataset(config(mat), "train")
    assert caught.value.exit_code == 3


def test_an_open_file_goes_to_a_spawned_process(mat: Path) -> None:
    file = MatFile(mat / "nyu_depth_v2_labeled.mat")
    fresh = copy.copy(file)  # by the same protocol as a worker's arguments
    assert fresh._files == {}
    assert np.array_equal(fresh.image(3), file.image(3))


def test_arrays_of_mtan(tmp_path: Path) -> None:
    root = write_nyuv2_npy(tmp_path, count=11)
    dataset = load_dataset(config(root, size=(36, 48)), "train")
    assert [Path(dataset.identifier(i)).stem for i in (0, 2, 10)] == ["0", "2", "10"]
    for index, frame in enumerate(planes(11, (36, 48))[:3]):
        sample = dataset[index]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), frame.image)
        assert np.array_equal(sample["targets"]["depth"][0].numpy(), frame.depth)
        assert sample["targets"]["segmentation"][0, 0] == 255
        assert sample["targets"]["segmentation"][0, 10] == 21 % 13
        assert angle(sample["targets"]["normals"], frame.normal) < 1e-2
        assert (sample["targets"]["normals"][:, :2] == 0).all()


def test_arrays_have_13_classes_and_filled_depth(tmp_path: Path) -> None:
    root = write_nyuv2_npy(tmp_path)
    with pytest.raises(ConfigError, match="has 13 classes, not 40"):
        load_dataset(config(root, options={"classes": 40}), "train")
    with pytest.raises(ConfigError, match="raw depth"):
        load_dataset(config(root, options={"depth": "raw"}), "train")


def test_the_check_finds_the_axes_of_stored_normals(tmp_path: Path) -> None:
    root = write_nyuv2_npy(tmp_path, axes="xzy")
    size = (36, 48)
    assert any(
        "options.normal_axes=+x-z+y it is 0" in note for note in check_dataset(config(root, size=size)).notes
    )
    options = {"normal_axes": "+x-z+y"}
    targets = load_dataset(config(root, size=size, options=options), "train")[0]["targets"]
    assert angle(targets["normals"], planes(1, size)[0].normal) < 1e-2
    assert not any("it is" in note for note in check_dataset(config(root, size=size, options=options)).notes)


def test_axes_are_named_once_each(tmp_path: Path) -> None:
    root = write_nyuv2_npy(tmp_path)
    with pytest.raises(ConfigError, match="names an axis twice"):
        load_dataset(config(root, options={"normal_axes": "+x+x+z"}), "train")
    with pytest.raises(ConfigError, match="normal_axes"):
        load_dataset(config(root, options={"normal_axes": "xyz"}), "train")


def test_turning_is_a_rotation_of_channels() -> None:
    normals = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    got = turned(normals, "+x-z+y")
    assert np.array_equal(got, np.stack([normals[0], -normals[2], normals[1]]))
    assert not np.signbit(turned(np.zeros((3, 1, 1), np.float32), "-x-y-z")).any()


def test_png_files_have_all_classes_and_derived_normals(tmp_path: Path) -> None:
    root = write_nyuv2_png(tmp_path)
    for classes, unlabeled, bed in (
        (13, 255, "sofa"),
        (40, 255, "otherstructure"),
        (41, 0, "otherstructure"),
    ):
        dataset = load_dataset(config(root, options={"classes": classes}), "train")
        segmentation = dataset[0]["targets"]["segmentation"]
        assert segmentation[0, 0] == unlabeled
        names = dataset.specs["segmentation"].classes
        assert len(names) == classes
        if classes != 13:
            assert names[int(segmentation[-1, 0])] == bed == CLASSES_40[157 % 40]
    frame = planes(1, (48, 64))[0]
    targets = dataset[0]["targets"]
    # Half a step of the stored depth, and what that does to a plane fitted to 5 x 5 pixels.
    np.testing.assert_allclose(targets["depth"][0].numpy(), frame.depth, atol=1.01e-4)
    assert angle(targets["normals"], frame.normal) < 1.0


def test_normals_can_be_left_out_or_asked_for(tmp_path: Path) -> None:
    root = write_nyuv2_png(tmp_path)
    assert set(load_dataset(config(root, options={"normals": "none"}), "val").specs) == {
        "segmentation",
        "depth",
    }
    with pytest.raises(ConfigError, match="no stored normals"):
        load_dataset(config(root, options={"normals": "stored"}), "val")


def test_the_check_names_damaged_and_missing_files(tmp_path: Path) -> None:
    root = write_nyuv2_png(tmp_path)
    image, label = root / "train" / "image" / "0002.png", root / "val" / "label" / "0001.png"
    image.write_bytes(image.read_bytes()[:-20])
    label.unlink()
    report = check_dataset(config(root))
    assert report.problems[:1] == [f"{image}: cut short"]
    assert "1 of the frames of val have no segmentation, which is unknown there: 0001" in report.notes


@pytest.mark.parametrize(
    ("write", "part", "lacking"),
    [
        (write_nyuv2_png, "label", {"segmentation"}),
        (write_nyuv2_png, "depth", {"depth", "normals"}),  # which are derived
        (write_nyuv2_npy, "label", {"segmentation"}),
        (write_nyuv2_npy, "depth", {"depth"}),
        (write_nyuv2_npy, "normal", {"normals"}),
    ],
)
def test_a_file_that_is_not_there_is_unknown_to_its_task_alone(
    write: Callable[[Path], Path], part: str, lacking: set[str], tmp_path: Path
) -> None:
    root = write(tmp_path)
    before = load_dataset(config(root), "train")
    whole = [before[index] for index in range(len(before))]
    sorted((root / "train" / part).iterdir())[1].unlink()
    dataset = load_dataset(config(root), "train")
    assert len(dataset) == len(whole)
    for name in dataset.specs:
        value = dataset[1]["targets"][name]
        if name in lacking:
            assert (value == (255 if name == "segmentation" else 0)).all()
        else:
            assert torch.equal(value, whole[1]["targets"][name])
    count = len(dataset)
    assert known_labels(dataset, dataset.specs) == {n: count - (n in lacking) for n in dataset.specs}


def test_normals_from_depth_are_unknown_without_it(tmp_path: Path) -> None:
    root = write_nyuv2_png(tmp_path)
    (root / "train" / "depth" / "0002.png").unlink()
    dataset = load_dataset(config(root, options={"normals": "derived"}), "train")
    assert known_labels(dataset, dataset.specs) == {"segmentation": 3, "depth": 2, "normals": 2}
    assert not dataset[1]["targets"]["normals"].any()
    (root / "train" / "label" / "0002.png").unlink()
    assert len(load_dataset(config(root, options={"normals": "derived"}), "train")) == 2


def test_a_missing_folder_says_where_to_get_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cs\.nyu\.edu"):
        load_dataset(config(tmp_path), "train")


def test_samples_are_the_same_from_every_cache(mat: Path) -> None:
    plain = load_dataset(config(mat), "train")[2]
    for cache in ("memory", "disk"):
        sample = load_dataset(config(mat, cache=cache), "train")[2]
        assert torch.equal(sample["image"], plain["image"])
        for name, target in plain["targets"].items():
            assert torch.equal(sample["targets"][name], target)


def test_the_depth_head_can_start_at_the_mean(mat: Path) -> None:
    dataset = load_dataset(config(mat), "val")
    depths = np.stack([frame.depth for frame in planes(6, (48, 64))[:4]])
    assert dataset.specs["depth"].mean == pytest.approx(depths.mean(), rel=0.01)
    assert dataset.specs["depth"].std == pytest.approx(depths.std(), rel=0.02)
