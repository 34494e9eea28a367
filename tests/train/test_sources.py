"""Training on several data sets: measured on each, resumed bit-equal, whichever way batches are drawn."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from compactmtl.backends import load_target
from compactmtl.cli.export import summary
from compactmtl.config import Resolved, resolve_recipe
from compactmtl.config.sources import as_deployed
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.fingerprint import differences
from compactmtl.data.sources import choose
from compactmtl.errors import ConfigError
from compactmtl.export.artifact import calibration_feeds, interface_of
from compactmtl.export.run import check_baseline, export_run
from compactmtl.report.collect import build_report
from compactmtl.report.samples import ValSplits, predict_samples
from compactmtl.runs.checkpoint import load_summary
from compactmtl.runs.subset import subset_run
from compactmtl.tasks.gain import mean_score
from compactmtl.train import Run, train
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import dry_run
from compactmtl.train.same_data import fingerprints
from compactmtl.verify.accuracy import evaluate, torch_runner
from tests.support.interrupting import trained_in_two_parts
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.folder import write_folder
from tests.support.layouts.utkface import write_utkface

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces (8 a split), clothes (5), and two folders of rooms (5 a split) with other names for one class."""
    folder = tmp_path_factory.mktemp("data")
    write_utkface(folder, count=8)
    write_ccp(folder / "ccp", count=5)
    for number, name in enumerate(("one", "other")):
        write_folder(folder / name, split=True, seed=number)
    text = (folder / "other" / "dataset.yaml").read_text()
    (folder / "other" / "dataset.yaml").write_text(
        text.replace("[floor, wall, block]", "[floor, wall, cube]")
    )
    return folder


def recipe(
    root: Path, *overrides: str, mixing: str = "{}", size: str = "null", rooms: bool = False
) -> Resolved:
    """The tiny network on faces and clothes, or on two data sets of rooms."""
    path = root / "recipe.yaml"
    faces = f"""
    - {{name: utkface, tasks: [age], size: {size}}}
    - {{name: ccp, tasks: [segmentation], options: {{classes: grouped}}}}"""
    both = """
    - {name: folder, alias: one, root: one, tasks: [segmentation, weather]}
    - {name: folder, alias: other, root: other, tasks: [segmentation], classes: {segmentation: {cube: block}}}"""
    second = "weather: {kind: classification}" if rooms else "age: {kind: regression}"
    path.write_text(f"""\
extends: {HERE / "tiny.yaml"}
data:
  name: ""
  root: .
  batch_size: 6
  options: {{}}
  mixing: {mixing}
  sources:{both if rooms else faces}
tasks:
  depth: null
  {second}
""")
    return resolve_recipe(path, list(overrides))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints" / "last" / "weights.safetensors")


def test_each_task_is_learned_and_measured_on_its_own_data(root: Path, tmp_path: Path) -> None:
    console = quiet()
    run = train(recipe(root, "train.epochs=2"), tmp_path / "run", console=console)
    text = said(console)
    assert "labels of train of utkface: age 8 of 8" in text
    assert "images of an epoch of 3 joined batches: utkface 11 (61.5%, each image 1.4 times), ccp 7" in text
    assert set(run.best) == {"age", "segmentation"}
    # as on each data set alone
    alone = run.recipe.data.model_copy(
        update={"name": "utkface", "sources": (), "root": str(root), "mixing": type(run.recipe.data.mixing)()}
    )
    loader = build_loader(load_dataset(alone, "val"), alone, train=False, seed=0)
    age = {"age": run.tasks["age"]}
    assert evaluate(torch_runner(run.load_model()), loader, age)["age"] == pytest.approx(
        run.best["age"], rel=1e-6
    )


def test_a_task_of_two_data_sets_is_measured_on_each(root: Path, tmp_path: Path) -> None:
    console = quiet()
    run = train(recipe(root, "train.epochs=2", rooms=True), tmp_path / "run", console=console)
    names = {"segmentation", "segmentation@one", "segmentation@other", "weather"}
    assert set(run.best) == names
    assert list(run.measured) == ["segmentation@one", "segmentation@other", "weather"]
    summary = load_summary(run.path / "checkpoints" / "best")
    assert summary["score"] == mean_score(run.best, run.measured)
    epochs = [event for event in run.log() if event["event"] == "epoch"]
    assert all(set(event["val"]) == names for event in epochs)
    assert "segmentation@one miou" in said(console) and "segmentation@other miou" in said(console)
    # and each as if it were there alone
    data = run.recipe.data
    dataset: Any = load_dataset(data, "val")
    part = dataset.chosen(range(len(dataset.parts[0]), len(dataset)))
    loader = build_loader(part, data, train=False, seed=0)
    other = evaluate(torch_runner(run.load_model()), loader, {"segmentation": run.tasks["segmentation"]})
    assert other["segmentation"] == pytest.approx(run.best["segmentation@other"], rel=1e-6)


def test_a_subset_keeps_the_metrics_by_source(root: Path, tmp_path: Path) -> None:
    run = train(recipe(root, "train.epochs=1", rooms=True), tmp_path / "run", console=quiet())
    subset = subset_run(run, ["segmentation"])
    assert set(subset.best) == {"segmentation", "segmentation@one", "segmentation@other"}
    assert list(subset.measured) == ["segmentation@one", "segmentation@other"]
    assert "delta_m" in next(event for event in subset.log() if event["event"] == "epoch")


def test_a_subset_has_the_gain_of_its_own_tasks_on_each_source(root: Path, tmp_path: Path) -> None:
    stated = "{segmentation@one: {miou: 0.2}, segmentation@other: {miou: 0.1}, weather: {accuracy: 0.5}}"
    run = train(
        recipe(root, f"single_task={stated}", "train.epochs=1", rooms=True), tmp_path / "run", console=quiet()
    )
    for task, expected in (
        ("segmentation", {"segmentation@one": ("miou", 0.2), "segmentation@other": ("miou", 0.1)}),
        ("weather", {"weather": ("accuracy", 0.5)}),
    ):
        subset = subset_run(run, [task])
        event = next(event for event in subset.log() if event["event"] == "epoch")
        gains = [event["val"][name][metric] / value - 1 for name, (metric, value) in expected.items()]
        assert event["delta_m"] == event["score"] == pytest.approx(sum(gains) / len(gains))
        assert {name for name in event["val"] if "@" in name} == {name for name in expected if "@" in name}


def test_the_gain_is_over_tasks_and_sources(root: Path, tmp_path: Path) -> None:
    stated = "{segmentation@one: {miou: 0.2}, segmentation@other: {miou: 0.1}, weather: {accuracy: 0.5}}"
    run = train(
        recipe(root, f"single_task={stated}", "train.epochs=1", rooms=True), tmp_path / "run", console=quiet()
    )
    event = next(event for event in run.log() if event["event"] == "epoch")
    val = event["val"]
    expected = (
        (val["segmentation@one"]["miou"] / 0.2 - 1)
        + (val["segmentation@other"]["miou"] / 0.1 - 1)
        + (val["weather"]["accuracy"] / 0.5 - 1)
    ) / 3
    assert event["delta_m"] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="unknown task 'segmentation'"):
        build_session(recipe(root, "single_task={segmentation: {miou: 0.2}}", rooms=True).recipe)


@pytest.mark.parametrize(
    ("mixing", "size"),
    [
        ("{by: sqrt, epoch: 4}", "null"),
        ("{batches: alternating, by: shares, shares: {utkface: 0.5, ccp: 0.5}, epoch: 4}", "[16, 24]"),
    ],
)
def test_an_interrupted_run_goes_on_bit_equal(root: Path, tmp_path: Path, mixing: str, size: str) -> None:
    resolved = recipe(root, "train.epochs=2", mixing=mixing, size=size)
    whole = train(resolved, tmp_path / "whole", console=quiet())
    half = trained_in_two_parts(resolved, tmp_path / "half", quiet(), 6)  # in the second epoch
    one, other = weights(whole), weights(half)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert half.best == whole.best


def test_a_dry_run_says_what_there_is(root: Path) -> None:
    found = dry_run(recipe(root, mixing="{epoch: 9}").recipe)
    assert found.samples == {"train": 13, "val": 13}
    assert found.steps_per_epoch == 9
    assert any(line.startswith("labels of train of ccp: segmentation 5 of 5") for line in found.data)


def test_the_whole_step_works_with_balancers_and_penalties(root: Path, tmp_path: Path) -> None:
    """Alternating batches know nothing of the other source's task: its gradient is zero, never no number."""
    resolved = recipe(
        root,
        "balancing={name: aligned_mtl, at: features}",
        "regularization.dgr={strength: 0.1}",
        "train.epochs=1",
        mixing="{batches: alternating, by: shares, shares: {utkface: 0.5, ccp: 0.5}, epoch: 4}",
    )
    run = train(resolved, tmp_path / "run", console=quiet())
    assert all(torch.isfinite(value.float()).all() for value in weights(run).values())


def test_other_data_is_noticed_when_a_run_goes_on(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "data")
    resolved = recipe(tmp_path / "data", "train.epochs=2", rooms=True)
    before = fingerprints(resolved.recipe, build_session(resolved.recipe).data.splits)
    path = next((tmp_path / "data" / "other" / "segmentation" / "train").glob("*.png"))
    shutil.copy(next(path.parent.parent.glob("val/*.png")), path)
    after = fingerprints(resolved.recipe, build_session(resolved.recipe).data.splits)
    (line,) = differences(before["train"], after["train"])
    assert line == f"1 changed (other/train/{path.stem})"


@pytest.mark.slow
def test_a_bundle_and_a_report_tell_each_source(root: Path, tmp_path: Path) -> None:
    run = train(recipe(root, "train.epochs=2", rooms=True), tmp_path / "run", console=quiet())
    target = load_target("onnxruntime-cpu")
    few = target.model_copy(
        update={
            "accuracy": target.accuracy.model_copy(update={"samples": 4}),
            "latency": target.latency.model_copy(update={"repeats": 5}),
        }
    )
    verification = export_run(run, "onnxruntime-cpu", few)
    accuracy = verification.accuracy
    assert accuracy.samples == 4  # two of each
    names = {"segmentation", "segmentation@one", "segmentation@other", "weather"}
    assert set(accuracy.torch) == set(accuracy.artifact) == names
    judged = {gate.subject for gate in verification.gates if gate.gate == "accuracy"}
    assert {"segmentation@one.miou", "segmentation@other.miou", "weather.accuracy"} <= judged
    assert not any(subject.startswith("segmentation.") for subject in judged)
    lines = "\n".join(summary(verification, run.tasks))
    assert "segmentation@other  miou" in lines
    report = build_report([run], None, ValSplits())
    assert [task.name for task in report.tasks] == ["segmentation@one", "segmentation@other", "weather"]
    assert set(report.runs[0].trained.metrics or {}) == names
    samples = predict_samples([("run", run.load_plain(), run)], ValSplits(), 4)
    assert sorted(sample.identifier.partition("/")[2] for sample in samples) == [
        "val/001.jpg",
        "val/001.jpg",
        "val/005.jpg",
        "val/005.jpg",
    ]


def test_a_file_that_normalizes_cannot_serve_two_normalizations(root: Path, tmp_path: Path) -> None:
    console = quiet()
    resolved = recipe(root, "data.sources.ccp.mean=[0.5,0.5,0.5]", "train.epochs=1")
    run = train(resolved, tmp_path / "run", console=console)
    assert "images of ccp are normalized by a mean and std of their own" in said(console)
    target = load_target("onnxruntime-cpu")
    baked = target.model_copy(update={"onnx": target.onnx.model_copy(update={"preprocess": True})})
    with pytest.raises(ConfigError, match="those of ccp have a mean and std of their own"):
        export_run(run, "onnxruntime-cpu", baked)
    with pytest.raises(ConfigError, match="distillation: a teacher takes images of one normalization"):
        recipe(root, "data.sources.ccp.mean=[0.5,0.5,0.5]", "distillation.teacher=self")


def test_calibration_has_images_of_every_source(root: Path, tmp_path: Path) -> None:
    mixing = "{batches: alternating, by: shares, shares: {utkface: 0.5, ccp: 0.5}, epoch: 2}"
    run = train(
        recipe(root, "train.epochs=1", mixing=mixing, size="[16, 24]"), tmp_path / "run", console=quiet()
    )
    target = load_target("onnxruntime-cpu-int8")
    few = target.model_copy(update={"int8": target.int8.model_copy(update={"samples": 6})})
    feeds = calibration_feeds(run, few, interface_of(run, few), 2)
    images = torch.cat([torch.from_numpy(feed["image"]) for feed in feeds])
    assert images.shape == (6, 3, 32, 48)  # as deployed, whatever size a source trains at
    data = as_deployed(run.recipe.data)
    dataset = load_dataset(data, "train")
    (expected,) = list(build_loader(choose(dataset, [0, 2, 4, 6]), data, train=False, seed=0))
    assert torch.equal(images[:4], expected["image"])
    assert expected["sources"] == ["utkface"] * 4


def test_a_baseline_is_of_the_same_data_sets(root: Path, tmp_path: Path) -> None:
    run = train(recipe(root, "train.epochs=1"), tmp_path / "run", console=quiet())
    other = train(
        recipe(root, "train.epochs=1", "data.sources.ccp.targets={segmentation: segmentation}"),
        tmp_path / "other",
        console=quiet(),
    )
    with pytest.raises(ConfigError, match=r"has data\.sources"):
        check_baseline(run, other)


def test_single_task_networks_of_a_recipe_are_its_baseline(root: Path, tmp_path: Path) -> None:
    path = recipe(root).path
    runs = [train(resolve_recipe(path, ["train.epochs=1"]), tmp_path / "both", console=quiet())]
    for task in ("age", "segmentation"):
        alone = resolve_recipe(path, ["train.epochs=1"], tasks=[task])
        assert len(alone.recipe.data.sources) == 1
        runs.append(train(alone, tmp_path / task, console=quiet()))
    report = build_report(runs, "single", ValSplits())
    assert report.delta_reference == "single-task networks"
    assert report.single_task_runs == ("age", "segmentation")
