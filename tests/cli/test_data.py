"""`data check` from the command line: its report, its picture, its exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli import data
from compactmtl.cli.main import main
from compactmtl.data import DATASETS
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.folder import write_folder

SMALL = ["size=[24,32]", "options.train=4", "options.val=2", "options.test=2"]


def test_scenes_pass_and_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "scenes.png"
    assert main(["data", "check", "scenes", *SMALL, "--out", str(out), "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert "train    4 samples" in printed
    assert "options.train=4" in printed
    with Image.open(out) as picture:
        assert picture.width > 4 * 32


def test_the_picture_has_a_default_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "scenes", *SMALL, "--split", "val"]) == 0
    assert (tmp_path / "data-scenes.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["utkface", "root=/nowhere/at/all"], "no such folder"),
        (["scnes"], "did you mean scenes?"),
        (["scenes", "sise=[8,8]"], "did you mean `size`?"),
        (["scenes", "options.trian=3"], "options.train"),
        (["scenes", "size=[24]"], "size"),
        (["scenes", *SMALL, "--split", "dev"], "no split 'dev'"),
        (["scenes", *SMALL, "--out", "picture.txt"], "end the name in .png"),
    ],
)
def test_faults_exit_2_with_a_mend(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) >= 2


def test_a_damaged_face_exits_2_and_the_others_are_still_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(3):
            image = Image.fromarray(np.full((8, 8, 3), 80 * number, np.uint8))
            image.save(tmp_path / split / f"{20 + number}_1_2_2017010{number}.jpg")
    (tmp_path / "train" / "24_0_0_20170109.jpg").write_bytes(b"\xff\xd8")
    out = tmp_path / "faces.png"
    assert main(["data", "check", "utkface", f"root={tmp_path}", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert "24_0_0_20170109.jpg" in captured.out
    assert "1 problem in the data" in captured.err
    assert out.is_file()


def test_help_names_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in DATASETS)
    assert data.HELP


def test_a_folder_that_cannot_be_written_keeps_the_verdict_and_loses_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data-scenes.png").mkdir()  # a file cannot be written in its place, whoever the user is
    assert main(["data", "check", "scenes", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "train    4 samples" in printed
    assert "no picture: data-scenes.png cannot be written" in printed and "--out" in printed
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "sheet.png")
    assert main(["data", "check", "scenes", *SMALL, "--out", out]) == 2  # a place that was asked for
    captured = capsys.readouterr()
    assert "train    4 samples" in captured.out
    assert out in captured.err


def test_labels_and_endings_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, count=10)
    (tmp_path / "depth" / "003.png").unlink()
    image = tmp_path / "images" / "004.jpg"
    with Image.open(image) as opened:
        opened.save(image.with_suffix(".TIF"))
    image.unlink()
    (tmp_path / "images" / "005.heic").write_bytes(b"x")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"x")
    assert main(["data", "check", "folder", f"root={tmp_path}", "--out", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "images   9 .jpg, 1 .tif" in printed
    labels = [line for line in printed.splitlines() if line.startswith("labels")]
    assert [line.split()[1] for line in labels] == ["train:", "val:"]
    assert sum("depth 7 of 8" in line or "depth 1 of 2" in line for line in labels) == 1
    assert "1 files are not read (.heic is no ending that is): 005.heic" in printed
    assert "DS_Store" not in printed


def test_several_data_sets_are_counted_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "rooms", split=True)
    write_ccp(tmp_path / "ccp", count=3)
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        "data:\n"
        "  size: [24, 32]\n"
        "  mixing: {batches: alternating}\n"
        "  sources:\n"
        "    - {name: folder, root: rooms, tasks: [depth], size: [12, 16]}\n"
        "    - {name: ccp, root: ., tasks: [segmentation], options: {classes: grouped}}\n"
        "tasks: {depth: {kind: depth}, segmentation: {kind: segmentation}}\n"
    )
    out = tmp_path / "both.png"
    assert main(["data", "check", str(recipe), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "train of folder 5 samples" in printed
    assert "labels   train of ccp: segmentation 3 of 3" in printed
    assert "labels   train: depth 5 of 8, segmentation 3 of 8" in printed
    assert "option   sources.ccp.options.classes=grouped" in printed
    assert out.is_file()
    assert main(["recipes", "check", str(recipe)]) == 0
    recipe.write_text(recipe.read_text().replace("classes:", "clases:"))
    assert main(["recipes", "check", str(recipe)]) == 2
    assert "data.sources: ccp.options" in capsys.readouterr().err


def test_teachers_of_a_recipe_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "rooms", split=True)
    (tmp_path / "rooms" / "depth" / "train" / "002.png").unlink()
    (tmp_path / "net.onnx").touch()
    recipe = tmp_path / "taught.yaml"
    recipe.write_text(
        "data:\n"
        "  {name: folder, root: rooms, size: [24, 32], pseudo_labels: {far: {teacher: net.onnx, agreement: 0.1}}}\n"
        "tasks: {far: {kind: depth, target: depth}}\n"
    )
    words = ["data", "check", str(recipe), "--out", str(tmp_path / "a.png")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert (
        f"teacher  far: 4 of 5 training samples have a label, {tmp_path / 'net.onnx'} is to label 1 more at agreement <= 0.1"
        in printed
    )
    (tmp_path / "net.onnx").unlink()
    assert main(words) == 2
    assert (
        f"problem  data.pseudo_labels.far.teacher: {tmp_path / 'net.onnx'} is not there"
        in capsys.readouterr().out
    )
