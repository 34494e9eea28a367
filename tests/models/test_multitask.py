"""The multi-task network from a recipe: outputs, order, gradients, export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import Recipe
from compactmtl.errors import ConfigError
from compactmtl.models import MultiTaskModel, build_model
from compactmtl.tasks import TargetSpec, Task, build_tasks
from tests.support.masking import FLOAT32, assert_close

SPECS = {
    "seg": TargetSpec("mask", classes=("a", "b", "c"), ignore_index=255),
    "depth": TargetSpec("depth", unit="m", mean=3.0, std=1.5),
    "normals": TargetSpec("normals"),
    "gender": TargetSpec("class", classes=("male", "female")),
    "age": TargetSpec("scalar", unit="years", mean=33.0, std=20.0),
}
KINDS = {
    "seg": "segmentation",
    "depth": "depth",
    "normals": "normals",
    "gender": "classification",
    "age": "regression",
}
TINY: dict[str, Any] = {"name": "resnet18", "options": {"channels": [4, 8, 8, 16], "layers": [1, 1, 1, 1]}}
SIZE = (64, 96)


def built(*names: str, encoder: dict[str, Any] = TINY) -> tuple[MultiTaskModel, dict[str, Task]]:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "any", "size": SIZE},
            "tasks": {name: {"kind": KINDS[name], "head": {"kind": "fcn" if name in ("seg", "depth", "normals") else "linear", "width": 8}} for name in names},
            "model": {"encoder": encoder},
        }
    )  # fmt: skip
    tasks = build_tasks(recipe.tasks, SPECS)
    return build_model(recipe, tasks), tasks


@pytest.mark.parametrize("names", [("age", "gender"), ("seg", "depth", "normals"), ("normals", "age", "seg")])
def test_outputs_have_the_tasks_names_order_and_shapes(names: tuple[str, ...]) -> None:
    model, tasks = built(*names)
    outputs = model.eval()(torch.randn(2, 3, *SIZE))
    assert list(outputs) == list(names)
    for name, task in tasks.items():
        assert outputs[name].shape == (2, task.channels, *(SIZE if task.dense else ()))


def test_every_parameter_gets_a_gradient_from_the_sum_of_losses() -> None:
    # timm starts residual branches at zero, where their inner layers have no gradient
    options = {**TINY["options"], "zero_init_last": False}
    model, tasks = built(*SPECS, encoder={**TINY, "options": options})
    outputs = model(torch.randn(4, 3, *SIZE))
    targets = {
        "seg": torch.randint(0, 3, (4, *SIZE)),
        "depth": 1 + torch.rand(4, 1, *SIZE),
        "normals": torch.randn(4, 3, *SIZE),
        "gender": torch.randint(0, 2, (4,)),
        "age": 50 * torch.rand(4),
    }
    total = torch.stack([tasks[name].loss(outputs[name], targets[name]) for name in tasks]).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.slow
def test_a_few_steps_of_training_lower_every_loss() -> None:
    torch.manual_seed(0)
    model, tasks = built("seg", "age")
    image = torch.randn(8, 3, *SIZE)
    targets = {
        "seg": (image[:, 0] > 0).long(),
        "age": 33 + 20 * image.mean((1, 2, 3)) / image.mean((1, 2, 3)).std(),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        outputs = model(image)
        losses = [tasks[name].loss(outputs[name], targets[name]) for name in tasks]
        history.append([loss.item() for loss in losses])
        optimizer.zero_grad()
        torch.autograd.backward(losses)
        optimizer.step()
    assert all(last < 0.9 * first for first, last in zip(history[0], history[-1], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("age", "gender"), tuple(SPECS)])
def test_the_model_traces_undecomposed_to_the_same_function(names: tuple[str, ...]) -> None:
    model, _ = built(*names)
    image = torch.randn(2, 3, *SIZE)
    expected = model.eval()(image)
    program = torch.export.export(model, (image,), strict=False)
    found = program.module()(image)
    assert list(found) == list(names)
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert set(program.graph_signature.parameters) == {name for name, _ in model.named_parameters()}


@pytest.mark.slow
def test_the_model_traces_with_a_free_batch() -> None:
    model, _ = built(*SPECS)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model.eval(), (torch.randn(2, 3, *SIZE),), dynamic_shapes=({0: batch},), strict=False
    )
    image = torch.randn(5, 3, *SIZE)
    expected = model(image)
    found = program.module()(image)
    for name in expected:  # another batch may take other kernels
        assert_close(expected[name], found[name], FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_runtime_computes_the_same(dynamic: bool, tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, _ = built(*SPECS)
    model.eval()
    image = torch.randn(2, 3, *SIZE)
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    torch.onnx.export(
        model,
        (image,),
        path,
        dynamo=True,
        input_names=["image"],
        output_names=list(SPECS),
        dynamic_shapes=shapes,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = torch.randn(5 if dynamic else 2, 3, *SIZE)
    expected = model(fed)
    found = dict(zip(SPECS, session.run(list(SPECS), {"image": fed.numpy()}), strict=True))
    for name, value in expected.items():
        span = float((value.max() - value.min()).detach())
        # float32 rounding as a share of the output's range
        assert float((torch.from_numpy(found[name]) - value).abs().max().detach()) <= 1e-4 * span


def test_a_copy_computes_the_same() -> None:
    model, _ = built("seg", "age")
    image = torch.randn(1, 3, *SIZE)
    first, second = model.eval()(image), copy.deepcopy(model)(image)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_takes_any_image_size() -> None:
    model, _ = built("seg", "age")
    outputs = model.eval()(torch.randn(1, 3, 50, 70))
    assert outputs["seg"].shape == (1, 3, 50, 70)


def test_an_encoder_with_several_maps_gives_its_last() -> None:
    class Maps(nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [image, 2 * image]

    class Plain(nn.Module):
        def forward(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            return features

    image = torch.randn(1, 3, 4, 4)
    assert torch.equal(MultiTaskModel(Maps(), {"t": Plain()})(image)["t"], 2 * image)


def test_a_task_name_that_torch_keeps_for_itself_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.keys"):
        MultiTaskModel(nn.Identity(), {"keys": nn.Identity()})
