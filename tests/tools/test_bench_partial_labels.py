"""The data of the bench of partial labels: thirds of the faces, each labeled for one task alone."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import pytest

from compactmtl.config.recipe import DataConfig
from compactmtl.data import load_dataset
from tests.support.layouts.utkface import write_utkface
from tools import bench_partial_labels as bench


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_utkface(tmp_path / "UTKFace", count=24)
    return tmp_path / "UTKFace"


def rows(folder: Path, task: str) -> dict[str, str]:
    with (folder / f"{task}.csv").open(encoding="utf-8") as file:
        return {row["image"]: row["value"] for row in csv.DictReader(file)}


def test_every_face_of_train_has_one_label_and_those_of_val_have_all(root: Path, tmp_path: Path) -> None:
    joint = bench.write_data(root, tmp_path / "all", bench.TASKS)
    names = [set(rows(joint, task)) for task in bench.TASKS]
    train = [{name for name in one if name.startswith("train/")} for one in names]
    assert sum(map(len, train)) == len(set().union(*train)) == 24  # no face twice
    assert all(train)
    val = [{name for name in one if name.startswith("val/")} for one in names]
    assert val[0] == val[1] == val[2] and len(val[0]) > 0


def test_a_network_for_one_task_sees_the_labels_that_the_joint_one_sees(root: Path, tmp_path: Path) -> None:
    joint = bench.write_data(root, tmp_path / "all", bench.TASKS)
    for task in bench.TASKS:
        single = bench.write_data(root, tmp_path / task, [task])
        assert rows(single, task) == rows(joint, task)
        config = DataConfig(name="folder", root=str(single), size=(16, 16))
        labels = sum(name.startswith("train/") for name in rows(single, task))
        assert len(load_dataset(config, "train")) == labels  # faces of the other thirds are left out


def test_epochs_are_chosen_on_a_part_of_train(tmp_path: Path) -> None:
    given = argparse.Namespace(epochs=1, overrides=[])
    data = bench.recipe_of(given, tmp_path, ["age"], 0).recipe.data
    assert (data.select_on, data.holdout) == ("holdout", 0.1)


@pytest.mark.slow
def test_the_same_command_goes_on_and_prints_the_table(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [
        "data.size=[16,16]",
        "data.batch_size=4",
        "model.encoder.options.channels=[8,8,8,8]",
        "data.holdout=0.25",
    ]
    given = [
        "bench",
        "--root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "0",
        "--epochs",
        "1",
        *tiny,
    ]
    monkeypatch.setattr(sys, "argv", given)
    bench.main()
    first = capsys.readouterr().out
    bench.main()
    assert capsys.readouterr().out == first
    assert first.count("one for all tasks") == first.count("one for each task") == 2
