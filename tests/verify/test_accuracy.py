"""Accuracy over a split: the same metrics whatever the batches, for modules and for exported models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compactmtl.backends.base import Arrays, Description, Runner, TensorInfo
from compactmtl.config.recipe import HeadConfig, TaskConfig
from compactmtl.data.base import Batch
from compactmtl.errors import ArtifactError, DataError
from compactmtl.models import MultiTaskModel, build_head
from compactmtl.overparam import overparameterize
from compactmtl.overparam.convert import factorized_layers
from compactmtl.overparam.svd import SvdLayer
from compactmtl.tasks import TargetSpec, build_tasks
from compactmtl.verify.accuracy import (
    array_runner,
    evaluate,
    evaluate_on,
    evaluate_parts,
    evaluating,
    torch_runner,
)

TASKS = build_tasks(
    {
        "seg": TaskConfig(kind="segmentation", target="mask"),
        "depth": TaskConfig(kind="depth"),
        "normals": TaskConfig(kind="normals"),
        "gender": TaskConfig(kind="classification"),
        "age": TaskConfig(kind="regression"),
    },
    {
        "mask": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
        "depth": TargetSpec("depth", unit="m", mean=3.0, std=1.0),
        "normals": TargetSpec("normals"),
        "gender": TargetSpec("class", classes=("male", "female")),
        "age": TargetSpec("scalar", unit="years", mean=33.0, std=20.0),
    },
)
SAMPLES, SIZE = 11, (12, 16)


def model() -> MultiTaskModel:
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
    )
    heads = {name: build_head(task, 6, HeadConfig(kind="fcn" if task.dense else "linear", width=4)) for name, task in TASKS.items()}  # fmt: skip
    return MultiTaskModel(encoder, heads)


def split() -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (SAMPLES, *SIZE), generator=generator)
    mask[:, :2] = 255
    depth = 1 + 4 * torch.rand(SAMPLES, 1, *SIZE, generator=generator)
    depth[:, :, 5] = 0
    return {
        "image": torch.randn(SAMPLES, 3, *SIZE, generator=generator),
        "targets": {
            "mask": mask,
            "depth": depth,
            "normals": nn.functional.normalize(torch.randn(SAMPLES, 3, *SIZE, generator=generator), dim=1),
            "gender": torch.randint(0, 2, (SAMPLES,), generator=generator),
            "age": 90 * torch.rand(SAMPLES, generator=generator),
        },
    }


def batches(size: int) -> list[Batch]:
    whole = split()
    return [
        {
            "image": whole["image"][start : start + size],
            "targets": {name: target[start : start + size] for name, target in whole["targets"].items()},
        }
        for start in range(0, SAMPLES, size)
    ]


def flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{task}.{name}": value for task, values in metrics.items() for name, value in values.items()}


def same(found: Mapping[str, Mapping[str, float]], expected: Mapping[str, Mapping[str, float]]) -> bool:
    """Equal but for float32 rounding: another batch size may take other kernels.

    Errors move with the outputs; a share may move by a pixel or two that lie on the edge between classes.
    """
    one, other = flat(found), flat(expected)
    shares = {
        f"{name}.{metric}" for name in TASKS for metric, info in TASKS[name].metric_info.items() if info.share
    }
    pixels = SAMPLES * SIZE[0] * SIZE[1]
    return one.keys() == other.keys() and all(
        value == pytest.approx(other[name], rel=1e-5, abs=2 * 3 / pixels if name in shares else 0.0)
        for name, value in one.items()
    )


@pytest.mark.parametrize("size", [1, 3, 4])
def test_metrics_do_not_depend_on_how_the_split_is_cut(size: int) -> None:
    run = torch_runner(model())
    found = evaluate(run, batches(size), TASKS)
    assert list(found) == list(TASKS)
    assert same(found, evaluate(run, batches(SAMPLES), TASKS))


@pytest.mark.parametrize("size", [1, 4, SAMPLES])
def test_parts_are_every_so_manieth_sample_however_the_split_is_cut(size: int) -> None:
    run, whole = torch_runner(model()), split()
    found, parts = evaluate_parts(run, batches(size), TASKS, 3)
    assert same(found, evaluate(run, batches(SAMPLES), TASKS))
    for number, part in enumerate(parts):
        rows = list(range(number, SAMPLES, 3))
        own: Batch = {
            "image": whole["image"][rows],
            "targets": {name: target[rows] for name, target in whole["targets"].items()},
        }
        assert same(part, evaluate(run, [own], TASKS))


def test_a_part_that_knows_nothing_of_a_task_has_no_metrics_of_it() -> None:
    few = batches(SAMPLES)
    few[0]["targets"]["age"][[0, 2, 4, 6, 8, 10]] = float("nan")
    found, parts = evaluate_parts(torch_runner(model()), few, TASKS, 2)
    assert "age" in found and "age" not in parts[0] and "age" in parts[1]


def test_a_part_without_what_a_metric_is_of_has_none() -> None:
    task = build_tasks(
        {"edges": TaskConfig(kind="boundaries", target="mask")},
        {"mask": TargetSpec("mask", classes=("a", "b"), ignore_index=255)},
    )
    mask = torch.zeros(4, *SIZE, dtype=torch.long)
    mask[[0, 2], :, 8:] = 1  # the others are of one class, without a boundary
    batch: Batch = {"image": torch.zeros(4, 3, *SIZE), "targets": {"mask": mask}}

    def run(image: Any) -> Mapping[str, Tensor]:
        return {"edges": torch.zeros(len(image), 1, *SIZE)}

    found, parts = evaluate_parts(run, [batch], task, 2)
    assert "edges" in found and "edges" in parts[0]
    assert parts[1] == {}


def test_metrics_are_the_tasks_own() -> None:
    network = model().eval()
    whole = split()
    with torch.inference_mode():
        outputs = network(whole["image"])
    found = evaluate(torch_runner(network), batches(4), TASKS)
    age = (outputs["age"][:, 0] - whole["targets"]["age"]).abs().mean().item()
    gender = (outputs["gender"].argmax(1) == whole["targets"]["gender"]).float().mean().item()
    assert found["age"]["mae"] == pytest.approx(age, rel=1e-5)  # the reference sums in float32
    assert found["gender"]["accuracy"] == pytest.approx(gender, rel=1e-6)


class Exported(Runner):
    """A module behind the runner protocol with its batch fixed, as an exported model has."""

    def __init__(self, module: nn.Module, batch: int | None) -> None:
        self.module = module.eval()
        self.inputs = (TensorInfo("image", (batch, 3, *SIZE), "float32"),)
        self.outputs = tuple(TensorInfo(name) for name in TASKS)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        with torch.inference_mode():
            return {
                name: value.numpy() for name, value in self.module(torch.from_numpy(inputs["image"])).items()
            }

    def describe(self) -> Description:
        raise NotImplementedError


@pytest.mark.parametrize("fixed", [None, 1, 4])
@pytest.mark.parametrize("size", [3, SAMPLES])
def test_an_exported_model_has_the_metrics_of_its_module(fixed: int | None, size: int) -> None:
    network = model().eval()
    expected = evaluate(torch_runner(network), batches(size), TASKS)
    with Exported(network, fixed) as runner:
        found = evaluate(array_runner(runner), batches(size), TASKS)
    assert same(found, expected)


def test_a_model_of_two_inputs_cannot_be_evaluated() -> None:
    runner = Exported(model(), None)
    runner.inputs = (*runner.inputs, TensorInfo("mask"))
    with pytest.raises(ArtifactError, match="takes 2 inputs"):
        array_runner(runner)


def test_evaluation_leaves_the_module_as_it_was() -> None:
    network = model().train()
    frozen = network.get_submodule("encoder.1").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = {name: module.training for name, module in network.named_modules()}
    evaluate(torch_runner(network), batches(4), TASKS)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert not frozen.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    network = model().train()
    with pytest.raises(ZeroDivisionError), evaluating(network):
        raise ZeroDivisionError
    assert all(module.training for module in network.modules())


def test_a_missing_output_is_an_error() -> None:
    def run(image: Tensor) -> dict[str, Tensor]:
        return {"seg": torch.zeros(len(image), 3, *SIZE)}

    with pytest.raises(ArtifactError, match="no output 'depth'"):
        evaluate(run, batches(4), TASKS)


@pytest.mark.parametrize("shape", [(2, *SIZE), (3, 6, 8), (3,)])
def test_an_output_of_a_wrong_shape_is_an_error(shape: tuple[int, ...]) -> None:
    def run(image: Tensor) -> dict[str, Tensor]:
        return {"seg": torch.zeros(len(image), *shape)}

    with pytest.raises(ArtifactError, match="output 'seg' has shape"):
        evaluate(run, batches(4), {"seg": TASKS["seg"]})


def test_a_missing_target_and_an_empty_split_are_errors() -> None:
    run = torch_runner(model())
    without: list[Batch] = [{"image": split()["image"], "targets": {}}]
    with pytest.raises(DataError, match="no target 'mask' for task 'seg'"):
        evaluate(run, without, TASKS)
    with pytest.raises(DataError, match="empty"):
        evaluate(run, [], TASKS)


@pytest.mark.parametrize("training", [True, False])
def test_a_contracted_weight_is_computed_once_for_all_batches(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = overparameterize(model(), "svd").train(training)
    layers = len(factorized_layers(network))
    calls: list[int] = []
    product = SvdLayer.product

    def counted(self: SvdLayer) -> Tensor:
        calls.append(1)
        return product(self)

    monkeypatch.setattr(SvdLayer, "product", counted)
    evaluate(torch_runner(network), batches(2), TASKS)
    assert len(calls) == layers
    assert all(module.training is training for module in network.modules())


class Broken(nn.Module):
    """The network, with one value of one output of the last image replaced."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.network, self.value = model(), value

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = dict(self.network(image))
        if torch.equal(image[-1], split()["image"][-1]):
            outputs["seg"] = outputs["seg"].clone()
            outputs["seg"][-1, 0, 3, 3] = self.value
        return outputs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_no_number_leaves_no_metric_of_its_task(value: float) -> None:
    """An argmax over it would be a class, and the metrics numbers."""
    found = evaluate(torch_runner(Broken(value)), batches(4), TASKS, finite=True)
    assert all(math.isnan(metric) for metric in found["seg"].values())
    assert all(math.isfinite(metric) for task in found if task != "seg" for metric in found[task].values())


def test_a_class_that_is_masked_by_infinity_may_be_evaluated() -> None:
    found = evaluate(torch_runner(Broken(-math.inf)), batches(4), TASKS)
    assert all(math.isfinite(metric) for metric in found["seg"].values())


class Moved(nn.Module):
    """A network that notes where it is put, and which switches of float32 it is run under."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.places, self.tf32 = inner, list[str](), set[bool]()

    def to(self, *args: Any, **kwargs: Any) -> Moved:
        self.places.append(str(args[0]))
        return self

    def forward(self, image: Tensor) -> Any:
        self.tf32.add(torch.backends.cudnn.allow_tf32)
        return self.inner(image)


def test_a_model_is_put_on_the_device_and_back_and_runs_without_tf32() -> None:
    batch, net = split(), model()
    expected = evaluate(torch_runner(net), [batch], TASKS)
    moved = Moved(net)
    before = torch.backends.cudnn.allow_tf32
    found = evaluate_on(moved, torch.device("cpu", 0), [batch], TASKS)
    np.testing.assert_equal(found, expected)
    assert moved.places == ["cpu:0", "cpu"]
    assert moved.tf32 == {False}
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(ArtifactError):
        evaluate_on(moved, "cpu", [batch], {**TASKS, "unknown": TASKS["age"]})
    assert moved.places[-1] == "cpu"  # put back after an error, too
