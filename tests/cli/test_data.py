"""`data check` from the command line: its report, its picture, its exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli import data
from compactmtl.cli.main import main
from compactmtl.data import DATASETS

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
        (["scenes", *SMALL, "--out", "picture.txt"], "end it in .png"),
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
