"""RGB-D folders: depth in metres, normals from files and from depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.errors import DataError
from tests.support.layouts.rgbd import plane, unit, write_rgbd, write_sevenscenes_raw
from tools.prepare_sevenscenes import main as prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_rgbd(tmp_path, count=3)


def config(root: Path, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({"name": "rgbd", "size": (36, 48), "root": str(root)} | fields)


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees between two maps of normals where both are known."""
    known = (a.abs().sum(0) > 0) & (b.abs().sum(0) > 0)
    assert known.float().mean() > 0.5
    return torch.rad2deg(torch.acos((a * b).sum(0)[known].clamp(-1, 1)))


def test_depth_is_in_metres_and_normals_are_unit(root: Path) -> None:
    dataset = load_dataset(config(root), "train")
    assert list(dataset.specs) == ["depth", "normals"]
    targets = dataset[0]["targets"]
    depth, normals = targets["depth"], targets["normals"]
    assert (depth.shape, depth.dtype) == ((1, 36, 48), torch.float32)
    assert not depth[:, :4, :4].any() and not normals[:, :4, :4].any()
    known = depth[0] > 0
    assert 0.5 < depth[0][known].mean() < 4
    assert torch.allclose(normals.norm(dim=0)[known], torch.ones(int(known.sum())), atol=1e-5)
    assert (normals[2][known] < 0).all()  # towards the camera


def test_normals_from_depth_are_those_of_the_plane(root: Path) -> None:
    given = load_dataset(config(root), "val")
    derived = load_dataset(config(root, options={"normals": "depth"}), "val")
    for index in range(3):
        a, b = given[index]["targets"]["normals"], derived[index]["targets"]["normals"]
        # The given ones are coded in 8 bits (0.4 degrees), depth in whole millimetres.
        assert float(angle(a, b).median()) < 1


def test_options(root: Path) -> None:
    halved = load_dataset(config(root, options={"units_per_metre": 2000}), "val")[0]["targets"]["depth"]
    whole = load_dataset(config(root), "val")[0]["targets"]["depth"]
    assert torch.allclose(2 * halved, whole)
    bound = float(whole.max()) - 0.01
    near = load_dataset(config(root, options={"max_depth": bound}), "val")[0]["targets"]["depth"]
    assert torch.equal(near, torch.where(whole > bound, 0, whole))
    assert list(load_dataset(config(root, options={"normals": "none"}), "val").specs) == ["depth"]


def test_without_normal_folders_the_check_says_how_to_have_them(tmp_path: Path) -> None:
    root = write_rgbd(tmp_path, count=2, normals=False)
    report = check_dataset(config(root))
    assert report.problems == []
    assert "options.normals=depth" in report.notes[0]
    assert list(load_dataset(config(root), "val").specs) == ["depth"]
    with pytest.raises(DataError, match="normal: no such folder"):
        load_dataset(config(root, options={"normals": "files"}), "train")


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", json.dumps({"intrinsics_50x50": []}), json.dumps({"intrinsics_48x36": [[1]]})],
)
def test_a_camera_that_does_not_fit_is_named(content: str | None, root: Path) -> None:
    (root / "camera.json").unlink()
    if content is not None:
        (root / "camera.json").write_text(content)
    with pytest.raises(DataError, match=r"camera\.json") as caught:
        load_dataset(config(root, options={"normals": "depth"}), "train")
    assert "intrinsics_640x480" in caught.value.hint


def test_frames_without_depth_are_noted_and_damage_is_named(root: Path) -> None:
    (root / "train/depth/frame-000000.png").unlink()
    (root / "val/normal/frame-000001.png").write_bytes(b"x")
    report = check_dataset(config(root))
    assert "1 frames of train lack" in report.notes[0]
    assert "val/normal/frame-000001.png" in report.problems[0]
    assert report.counts["train"] == 3
    assert report.known["train"] == {"depth": 2, "normals": 3}


def test_a_file_that_is_not_there_is_unknown_to_its_task_alone(root: Path) -> None:
    before = load_dataset(config(root), "train")
    whole = [before[index] for index in range(len(before))]
    (root / "train/depth/frame-000000.png").unlink()
    (root / "train/normal/frame-000001.png").unlink()
    dataset = load_dataset(config(root), "train")
    assert len(dataset) == len(whole) == 3
    assert not dataset[0]["targets"]["depth"].any() and not dataset[1]["targets"]["normals"].any()
    assert torch.equal(dataset[0]["targets"]["normals"], whole[0]["targets"]["normals"])
    assert torch.equal(dataset[1]["targets"]["depth"], whole[1]["targets"]["depth"])
    # where normals come of depth, a frame without it has nothing
    derived = load_dataset(config(root, options={"normals": "depth"}), "train")
    assert len(derived) == 2


def test_a_raw_scene_is_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = write_sevenscenes_raw(tmp_path / "kitchen"), tmp_path / "out"
    assert prepare([str(raw), str(out)]) == 0
    assert "6 frames converted, 0 were there" in capsys.readouterr().out
    assert prepare([str(raw), str(out)]) == 0
    assert "0 frames converted, 6 were there" in capsys.readouterr().out
    report = check_dataset(config(out))
    assert (report.counts, report.problems) == ({"train": 2, "val": 1, "test": 3}, [])
    dataset = load_dataset(config(out), "test")
    depth = dataset[1]["targets"]["depth"]
    assert not depth[:, -3:].any()  # 65535 in the raw file
    expected = torch.from_numpy(plane((36, 48), unit(np.array([0.1, 0.2])), 2.5)).float()
    assert torch.allclose(depth[0, :-3], expected[:-3], atol=5.1e-4)  # whole millimetres
    assert (dataset[1]["targets"]["normals"][2] <= 0).all()


def test_a_scene_without_its_lists_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_sevenscenes_raw(tmp_path / "kitchen")
    (raw / "TestSplit.txt").unlink()
    assert prepare([str(raw), str(tmp_path / "out")]) == 2
    assert "TestSplit.txt: no such file" in capsys.readouterr().err
