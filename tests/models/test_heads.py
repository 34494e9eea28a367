"""Heads: output shapes, units, starting point, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactmtl.config.recipe import HeadConfig, TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.models import FCNHead, LinearHead, build_head
from compactmtl.models.heads import head_config
from compactmtl.tasks import TargetSpec, Task, build_task
from tests.support.masking import FLOAT32, assert_close

AGE = build_task(
    "age", TaskConfig(kind="regression"), TargetSpec("scalar", unit="years", mean=33.0, std=20.0)
)
DEPTH = build_task("depth", TaskConfig(kind="depth"), TargetSpec("depth", unit="m", mean=3.0, std=1.5))
SEG = build_task("seg", TaskConfig(kind="segmentation"), TargetSpec("mask", classes=("a", "b", "c")))
GENDER = build_task("gender", TaskConfig(kind="classification"), TargetSpec("class", classes=("f", "m")))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("task", [SEG, DEPTH])
def test_fcn_gives_a_map_of_the_asked_size(task: Task, depth: int) -> None:
    head = build_head(task, 5, HeadConfig(kind="fcn", width=6, depth=depth)).eval()
    assert head(torch.randn(2, 5, 3, 4), (24, 32)).shape == (2, task.channels, 24, 32)
    assert head(torch.randn(2, 5, 3, 4)).shape == (2, task.channels, 3, 4)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("task", [AGE, GENDER])
def test_linear_takes_vectors_and_the_mean_of_maps(task: Task, depth: int) -> None:
    head = build_head(task, 5, HeadConfig(width=6, depth=depth)).eval()
    features = torch.randn(2, 5, 3, 4)
    assert head(features).shape == (2, task.channels)
    assert_close(head(features), head(features.mean((2, 3))), FLOAT32)


def test_regression_starts_at_the_training_mean_in_its_unit() -> None:
    head = build_head(AGE, 8)
    assert head(torch.zeros(1, 8)).item() == pytest.approx(33, abs=20)  # within one standard deviation
    last = head.get_submodule("last")
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    assert head(torch.randn(4, 8)).flatten().tolist() == pytest.approx([33.0] * 4)


def test_a_step_of_regression_does_not_depend_on_the_unit() -> None:
    """The same ages in years and in days: the same standardized loss and gradient."""
    found = []
    for factor in (1.0, 365.0):
        spec = TargetSpec("scalar", mean=33.0 * factor, std=20.0 * factor)
        task = build_task("age", TaskConfig(kind="regression"), spec)
        torch.manual_seed(0)
        head = build_head(task, 8)
        loss = task.loss(head(torch.ones(3, 8)), factor * torch.tensor([20.0, 40.0, 60.0]))
        found.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
    # float32 of numbers around 1e4
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found, strict=True))


def test_depth_starts_at_the_training_mean_and_stays_positive() -> None:
    head = build_head(DEPTH, 4)
    last = head.get_submodule("last")
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert head(torch.randn(1, 4, 2, 2)).mean().item() == pytest.approx(3.0)
    nn.init.constant_(last.weight, -0.1)
    assert (head.train()(torch.randn(2, 4, 2, 2)) > 0).all()


@pytest.mark.parametrize("mean", [1e-3, 1500.0, 1e6])
def test_depth_starts_at_any_mean(mean: float) -> None:
    task = build_task("depth", TaskConfig(kind="depth"), TargetSpec("depth", unit="mm", mean=mean))
    head = build_head(task, 4, HeadConfig(kind="fcn", depth=0))
    assert head(torch.zeros(1, 4, 1, 1)).item() == pytest.approx(mean, rel=1e-4)  # float32


def test_the_default_head_follows_the_task() -> None:
    assert isinstance(build_head(SEG, 4), FCNHead)
    assert isinstance(build_head(AGE, 4), LinearHead)


@pytest.mark.parametrize(
    ("task", "kind", "right"),
    [
        (SEG, "linear", "fcn"),
        (SEG, "mlp", "deeplabv3"),
        (AGE, "fcn", "linear"),
        (AGE, "deeplabv3", "mlp"),
        (GENDER, "mtan", "linear"),
    ],
)
def test_a_head_that_cannot_serve_its_task_is_an_error(task: Task, kind: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"tasks\.{task.name}\.head\.kind: a {kind} head") as error:
        head_config(task, HeadConfig.model_validate({"kind": kind}))
    assert right in error.value.hint


def test_mlp_normalizes_its_hidden_layers() -> None:
    head = build_head(GENDER, 5, HeadConfig(kind="mlp", width=6, depth=2))
    assert [type(module) for module in head.get_submodule("hidden.0").children()] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
    ]
    features = 100 + 50 * torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    hidden = head.get_submodule("hidden.0")[:2](features)  # type: ignore[index]
    assert (
        hidden.mean(0).abs().max() < 1e-4 and (hidden.std(0) - 1).abs().max() < 0.02
    )  # unbiased against biased
    assert head(features).shape == (64, 2)
    assert head.eval()(features[:1]).shape == (1, 2)


def test_mlp_reads_maps_and_gives_units_as_linear_does() -> None:
    head = build_head(AGE, 5, HeadConfig(kind="mlp", width=6)).eval()
    last = head.get_submodule("last")
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    assert head(torch.randn(2, 5, 3, 4)).flatten().tolist() == pytest.approx([33.0] * 2)


@pytest.mark.parametrize("kind", ["fcn", "deeplabv3"])
def test_every_dense_head_starts_depth_at_the_training_mean(kind: str) -> None:
    head = build_head(DEPTH, 4, HeadConfig.model_validate({"kind": kind, "width": 4}))
    last = head.get_submodule("last")
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert head(torch.randn(2, 4, 2, 2)).mean().item() == pytest.approx(3.0)


def test_dropout_acts_in_training_only() -> None:
    head = build_head(GENDER, 64, HeadConfig(dropout=0.5))
    features = torch.randn(1, 64)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_disparity_starts_at_the_training_mean_and_stays_positive() -> None:
    spec = TargetSpec("disparity", unit="px", mean=20.0, std=12.0)
    head = build_head(build_task("disparity", TaskConfig(kind="disparity"), spec), 4)
    last = head.get_submodule("last")
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert head(torch.randn(1, 4, 2, 2)).mean().item() == pytest.approx(20.0)
    nn.init.constant_(last.weight, -0.1)
    assert (head.train()(torch.randn(2, 4, 2, 2)) > 0).all()


def test_binned_regression_gives_plain_logits() -> None:
    spec = TargetSpec("scalar", unit="years", mean=33.0, std=20.0)
    config = TaskConfig(kind="binned_regression", options={"low": 1.0, "high": 101.0, "bins": 11})
    task = build_task("age", config, spec)
    head = build_head(task, 8, HeadConfig(depth=0))
    last = head.get_submodule("last")
    assert isinstance(last, nn.Linear)
    features = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(features), last(features))
    assert task.decode(head(features)).shape == (3,)
