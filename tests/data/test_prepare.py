"""Preparing NYUv2 and Cityscapes: from the downloads to folders that load the same."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch

from compactmtl.config.recipe import DataConfig
from compactmtl.data import check_dataset, load_dataset
from compactmtl.data.convert import run_tool
from tests.support.layouts.cityscapes import write_cityscapes
from tests.support.layouts.nyuv2 import write_nyuv2, write_nyuv2_npy
from tools import prepare_cityscapes, prepare_nyuv2


def zipped(folder: Path, archive: Path, prefix: str = "", within: str = "**/*") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.glob(within)):
            if path.is_file():
                opened.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def config(name: str, root: Path, size: tuple[int, int]) -> DataConfig:
    return DataConfig(name=name, size=size, root=str(root), cache="none")


def test_the_png_files_of_nyuv2_load_as_the_labelled_file_does(tmp_path: Path) -> None:
    for name in ("raw", "out"):
        (tmp_path / name).mkdir()
    write_nyuv2(tmp_path / "raw")
    command = [str(tmp_path / "raw/nyu_depth_v2_labeled.mat"), "--out", str(tmp_path / "out")]
    assert prepare_nyuv2.main(command) == 0
    assert check_dataset(config("nyuv2", tmp_path / "out", (48, 64))).problems == []
    for split in ("train", "val"):
        before = load_dataset(config("nyuv2", tmp_path / "raw", (48, 64)), split)
        after = load_dataset(config("nyuv2", tmp_path / "out", (48, 64)), split)
        assert len(before) == len(after)
        for index in range(len(before)):
            one, other = before[index], after[index]
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["targets"]["segmentation"], other["targets"]["segmentation"])
            # Half of the 1/5000 m of the file.
            assert (one["targets"]["depth"] - other["targets"]["depth"]).abs().max() <= 1.01e-4
            cosine = (one["targets"]["normals"] * other["targets"]["normals"]).sum(0)
            assert cosine.min() > 0.99997  # 0.4 degrees: what 8 bits a component cost


def test_preparing_again_goes_on_and_scenes_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nyuv2(tmp_path)
    command = [str(tmp_path / "nyu_depth_v2_labeled.mat"), "--out", str(tmp_path / "out")]
    assert prepare_nyuv2.main(command) == 0
    (tmp_path / "out/train/depth/0002.png").unlink()
    assert prepare_nyuv2.main(command) == 0
    assert "1 frames written, 5 were there" in capsys.readouterr().out
    held = config("nyuv2", tmp_path / "out", (48, 64)).model_copy(update={"holdout": 0.5})
    names = [Path(load_dataset(held, "holdout").identifier(i)).stem for i in range(2)]
    assert names in (["0001", "0002"], ["0003", "0004"])


def test_mtans_archive_of_nyuv2_is_unpacked(tmp_path: Path) -> None:
    write_nyuv2_npy(tmp_path / "raw")
    archive = zipped(tmp_path / "raw", tmp_path / "nyuv2.zip", prefix="nyuv2/")
    assert prepare_nyuv2.main([str(archive), "--out", str(tmp_path / "out")]) == 0
    assert len(load_dataset(config("nyuv2", tmp_path / "out", (36, 48)), "train")) == 3


def test_cityscapes_archives_become_one_folder(tmp_path: Path) -> None:
    raw = write_cityscapes(tmp_path / "raw", count=1)
    (raw / "gtFine/train/ulm/ulm_000000_000019_gtFine_color.png").write_bytes(b"not read")
    archives = [
        str(zipped(raw, tmp_path / f"{name}.zip", within=f"{name}/**/*"))
        for name in ("leftImg8bit", "gtFine", "disparity", "gtFinePanopticParts")
    ]
    assert prepare_cityscapes.main([*archives, "--out", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").rglob("*_color.png"))
    assert not list((tmp_path / "out").glob("*/test"))
    dataset = load_dataset(config("cityscapes", tmp_path / "out", (64, 128)), "train")
    assert (len(dataset), set(dataset.specs)) == (2, {"segmentation", "disparity", "parts"})


@pytest.mark.parametrize(
    ("member", "place"),
    [
        (
            "leftImg8bit_trainvaltest/leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png",
            "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png",
        ),
        ("gtFine/val/lindau/a_gtFine_labelIds.png", "gtFine/val/lindau/a_gtFine_labelIds.png"),
        ("gtFine/val/lindau/a_gtFine_instanceIds.png", None),
        ("gtFine/test/berlin/a_gtFine_labelIds.png", None),
        ("cityscapes/train/label_7/3.npy", "train/label_7/3.npy"),
        ("license.txt", None),
        ("README", None),
    ],
)
def test_members_of_cityscapes(member: str, place: str | None) -> None:
    assert prepare_cityscapes.place(PurePosixPath(member)) == (
        None if place is None else PurePosixPath(place)
    )


@pytest.mark.parametrize("tool", [prepare_cityscapes, prepare_nyuv2])
def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: object
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/readme.txt").write_text("hello")
    archive = zipped(tmp_path / "raw", tmp_path / "other.zip")
    assert tool.main([str(archive), "--out", str(tmp_path / "out")]) == 2  # type: ignore[attr-defined]
    assert "other.zip: holds no" in capsys.readouterr().err


def test_what_the_system_refuses_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cityscapes(tmp_path / "raw")
    archive = zipped(tmp_path / "raw", tmp_path / "all.zip")
    (tmp_path / "out").write_text("a file")
    assert prepare_cityscapes.main([str(archive), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.rpartition("error: ")[2].count("\n") == 1


def test_an_interrupted_tool_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    assert run_tool(work) == 130
    assert "run it again" in capsys.readouterr().err
