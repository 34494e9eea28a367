"""A recipe with a relative data.root works from any working folder, in every verb, and its data may move."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compactmtl.cli.main import main
from compactmtl.runs import Run
from tests.support.layouts.folder import write_folder

RECIPE = """\
data: {name: folder, root: ../pictures, size: [32, 32], resize: letterbox, batch_size: 4}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 8}}
  weather: {kind: classification}
model: {encoder: {name: test_resnet}}
train: {epochs: 2, device: cpu}
targets: [quick.yaml]
"""
TARGET = """\
extends: onnxruntime-cpu
latency: {warmup: 1, repeats: 3, settle: 0, not_slower: []}
"""
SWEEP = """\
recipe: mine.yaml
seeds: [0]
entries: {one: {overrides: [train.epochs=1]}}
baseline: one
"""
OK, GATE = 0, 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/mine.yaml, whose data is ../pictures; and a run of it that was begun from a third folder."""
    top = tmp_path_factory.mktemp("project")
    write_folder(top / "pictures", size=(24, 32), split=True)
    (top / "recipes").mkdir()
    (top / "recipes" / "mine.yaml").write_text(RECIPE)
    (top / "recipes" / "quick.yaml").write_text(TARGET)
    (top / "recipes" / "sweep.yaml").write_text(SWEEP)
    (top / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top / "elsewhere")
        words = ["train", "../recipes/mine.yaml", "--out", "../runs", "--name", "mine"]
        assert main([*words, "train.epochs=1"]) == OK
    return top


# The words of each verb from the folder `runs`, and the exit codes that are right: a busy machine may fail a gate.
VERBS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "data check": (["data", "check", "../recipes/mine.yaml", "--out", "sheet.png"], (OK,)),
    "dry run": (["train", "../recipes/mine.yaml", "--dry-run"], (OK,)),
    "latency": (
        ["latency", "../recipes/mine.yaml", "--cuts", "1", "--target", "../recipes/quick.yaml"],
        (OK,),
    ),
    "compact": (["compact", "mine", "--evaluate"], (OK,)),
    "export": (["export", "mine"], (OK, GATE)),
    "profile": (["profile", "mine", "--target", "../recipes/quick.yaml", "--repeats", "3"], (OK, GATE)),
    "report": (["report", "mine"], (OK,)),
    "probe": (["probe", "mine"], (OK,)),
    "sweep": (["sweep", "../recipes/sweep.yaml", "--out", "swept"], (OK,)),
    "predict": (["predict", "mine", "../pictures/images/train/000.jpg"], (OK,)),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moved", [False, True], ids=["where it was", "moved"])
def test_every_verb_finds_the_data(project: Path, moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "runs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    place = project / "pictures"
    words: list[str] = []
    if moved:  # relative on the command line: to the working folder
        place = project / "runs" / "there"
        shutil.move(project / "pictures", place)
        words = ["data.root=there"]
    try:
        for name, (line, right) in VERBS.items():
            given = [*line[:-1], str(place / "images" / "train" / "000.jpg")] if name == "predict" else line
            assert main([*given, *words]) in right, name
    finally:
        if moved:
            shutil.move(place, project / "pictures")
            shutil.rmtree(project / "runs" / "swept")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_is_resumed_from_another_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert Run.open("runs/mine").recipe.data.root == str(project / "pictures")
    words = ["train", "recipes/mine.yaml", "--out", "runs", "--name", "mine", "--resume", "train.epochs=1"]
    assert main(words) == OK
    shutil.copytree("pictures", "copied")
    assert main([*words, "data.root=copied"]) == OK
