"""Runs and bundles that label the training images of another run: from the teacher's training to the student's report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.artifacts.layout import DATA
from compactmtl.backends import load_target
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.data import load_dataset
from compactmtl.data.sources import SourcesDataset
from compactmtl.errors import ConfigError, DataError
from compactmtl.export.bundle import Bundle
from compactmtl.export.predict import Predictor
from compactmtl.export.run import export_run
from compactmtl.report.collect import build_report
from compactmtl.report.html import render
from compactmtl.report.samples import ValSplits
from compactmtl.runs.subset import subset_run
from compactmtl.train import Run, train
from compactmtl.train.build import build_session
from tests.support.interrupting import trained_in_two_parts
from tests.support.label_onnx import write_brightness
from tests.support.layouts.folder import write_folder

HERE = Path(__file__).parent
TASKS = """
tasks:
  depth: null
  segmentation: {kind: segmentation, head: {kind: fcn, width: 8}}
  weather: {kind: classification}
"""
ONE = "{name: folder, alias: one, root: one, tasks: [segmentation]}"
OTHER = "{name: folder, alias: other, root: other, tasks: [weather]}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of rooms, of five images a split each."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("one", "other")):
        write_folder(folder / name, split=True, seed=number)
    return folder


def recipe(root: Path, data: str, *overrides: str) -> Resolved:
    path = root / "recipe.yaml"
    path.write_text(f"extends: {HERE / 'tiny.yaml'}\ndata: {data}\n{TASKS}")
    return resolve_recipe(path, list(overrides))


def student(root: Path, teachers: str, *overrides: str) -> Resolved:
    """Two sources with a task each, and the other's from teachers."""
    data = f'{{name: "", root: ., batch_size: 4, options: {{}}, sources: [{ONE}, {OTHER}], pseudo_labels: {teachers}}}'
    return recipe(root, data, *overrides)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of both tasks on one of the folders."""
    resolved = recipe(root, "{name: folder, root: one, options: {}}", "train.epochs=3")
    return train(resolved, tmp_path_factory.mktemp("runs") / "teacher", console=quiet())


def last(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints" / "last" / "weights.safetensors")


@pytest.mark.slow
def test_a_run_labels_what_a_source_does_not(root: Path, teacher: Run, tmp_path: Path) -> None:
    teachers = f"{{segmentation: {{teacher: {teacher.path}, confidence: 0.4}}, weather: {{teacher: {teacher.path}}}}}"
    console = quiet()
    run = train(student(root, teachers, "train.epochs=1"), tmp_path / "run", console=console)
    assert isinstance(console.file, io.StringIO)
    assert (
        f"pseudo-labels of train: weather: 5 known, 5 filled by {teacher.path}, of 10"
        in console.file.getvalue()
    )
    # what the loader has is what predict says of the same pictures
    session = build_session(run.recipe)
    view: Any = session.train_loader.dataset
    dataset: SourcesDataset = view._dataset
    own = load_dataset(run.recipe.data, "train")
    assert isinstance(own, SourcesDataset)
    with Predictor.open(teacher.path) as predictor:
        for index in range(10):
            targets, before = dataset[index]["targets"], own[index]["targets"]
            said = {one.task: one for one in predictor.predict(own[index]["image"].numpy())}
            labeled = ("weather",) if index < 5 else ("segmentation",)
            for name in ("weather", "segmentation"):
                if name not in labeled:
                    assert torch.equal(targets[name], before[name])
            if index < 5:
                assert targets["weather"] == int(said["weather"].value)
            else:
                taken = targets["segmentation"] != 255
                expected = torch.from_numpy(said["segmentation"].value)
                assert torch.equal(targets["segmentation"][taken], expected[taken])
    start = run.log()[0]
    assert [one["task"] for one in start["pseudo_labels"]] == ["segmentation", "weather"]
    weather = start["pseudo_labels"][1]
    assert (weather["samples"], weather["known"], weather["filled"]) == (10, 5, 5)
    # its training counts as the teacher's
    assert [one["path"] for one in run.meta["teachers"]] == [str(teacher.path.resolve())]
    report = build_report([run], None, ValSplits())
    (_, shown) = report.runs[0].pseudo_labels
    assert (shown.task, shown.known, shown.filled) == ("weather", 5, 5)
    assert "5 known, 5 filled by" in render(report, [])
    part = subset_run(run, ["segmentation"])
    assert [one.task for one in build_report([part], None, ValSplits()).runs[0].pseudo_labels] == [
        "segmentation"
    ]


@pytest.mark.slow
def test_a_bundle_says_what_its_run_says(root: Path, teacher: Run, tmp_path: Path) -> None:
    target = load_target("onnxruntime-cpu")
    onnx = target.onnx.model_copy(update={"preprocess": True, "postprocess": {"segmentation": "softmax"}})
    quick = target.latency.model_copy(update={"repeats": 5})
    export_run(teacher, "labels", target.model_copy(update={"onnx": onnx, "latency": quick}))
    bundle = Bundle.open(teacher.path / "export" / "labels")
    sessions = [
        build_session(student(root, f"{{segmentation: {{teacher: {path}, confidence: 0.4}}}}").recipe)
        for path in (teacher.path, bundle.path)
    ]
    views: list[Any] = [session.train_loader.dataset for session in sessions]
    one, other = (view._dataset for view in views)
    masks = [
        torch.stack([dataset[n]["targets"]["segmentation"] for n in range(5, 10)]) for dataset in (one, other)
    ]
    assert (masks[0] != 255).any()
    # float32 on two runtimes: a pixel at the bound or between two classes may fall to either side
    assert (masks[0] == masks[1]).double().mean() > 0.99
    assert sessions[1].data.taught[0].sha256 == bundle.sha256


@pytest.mark.slow
def test_a_teacher_without_the_task_is_refused(root: Path, teacher: Run) -> None:
    with pytest.raises(ConfigError, match="has no task 'wether'; it has segmentation, weather"):
        build_session(student(root, f"{{weather: {{teacher: {teacher.path}, output: wether}}}}").recipe)
    with pytest.raises(
        ConfigError, match="kind of the teacher's segmentation is 'mask', that of the target 'class'"
    ):
        build_session(student(root, f"{{weather: {{teacher: {teacher.path}, output: segmentation}}}}").recipe)
    letterbox = "data.sources.one.resize=letterbox"
    with pytest.raises(ConfigError, match="images of resize stretch, those of one have letterbox"):
        build_session(student(root, f"{{weather: {{teacher: {teacher.path}}}}}", letterbox).recipe)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_teacher_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_brightness(root / "net.onnx", classes=2)
    # 5 rooms of each folder: 3 batches an epoch
    teachers = "{weather: {teacher: net.onnx, confidence: 0.6, mean: [0, 0, 0], std: [1, 1, 1]}}"
    resolved = student(root, teachers, "train.epochs=2")
    whole = train(resolved, tmp_path / "whole", console=quiet())
    half = trained_in_two_parts(resolved, tmp_path / "half", quiet(), 4)
    one, other = last(whole), last(half)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert half.best == whole.best
    known = json.loads((whole.path / DATA).read_text())["pseudo_label_teachers"]
    assert list(known) == ["weather"]

    def change() -> None:
        write_brightness(root / "net.onnx", classes=2, steep=20.0)
        assert "labels weather of 5 training images" in capsys.readouterr().err

    with pytest.raises(DataError, match=r"the teacher of weather's pseudo-labels, .*net\.onnx, has changed"):
        trained_in_two_parts(resolved, tmp_path / "changed", quiet(), 4, between=change)
    assert "labels weather" not in capsys.readouterr().err  # refused before it is asked
    accepted = train(resolved, tmp_path / "changed", resume=True, accept_changed_data=True, console=quiet())
    assert accepted.finished
    assert any("has changed" in line for event in accepted.log() for line in event.get("data_changed", ()))
