"""Which way is better: for every metric of every kind of task the right prediction beats a wrong one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.gain import delta_m

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = ("a", "b", "c")
MASK = torch.randint(0, 3, (2, 8, 10), generator=GENERATOR)
DEPTH = 1 + torch.rand(2, 1, 8, 10, generator=GENERATOR)
NORMALS = F.normalize(torch.randn(2, 3, 8, 10, generator=GENERATOR), dim=1)
LABELS = torch.randint(0, 2, (6, 3), generator=GENERATOR)
SCALARS = 40 * torch.rand(6, generator=GENERATOR)
EDGES = torch.arange(10).ge(5).long().expand(2, 8, 10).contiguous()  # a boundary between two columns
EDGE_MAP = torch.zeros(2, 1, 8, 10)
EDGE_MAP[..., 4:6] = 1


def one_hot(target: Tensor) -> Tensor:
    return 10 * F.one_hot(target, len(CLASSES)).movedim(-1, 1).float()


# kind of task, its target's format, what is true, the output that says so, and one that does not
CASES: dict[str, tuple[TargetSpec, Tensor, Tensor, Tensor]] = {
    "segmentation": (TargetSpec("mask", classes=CLASSES), MASK, one_hot(MASK), one_hot((MASK + 1) % 3)),
    "classification": (
        TargetSpec("class", classes=CLASSES),
        MASK[:, 0, 0],
        one_hot(MASK[:, 0, 0]),
        one_hot((MASK[:, 0, 0] + 1) % 3),
    ),
    "depth": (TargetSpec("depth", unit="m", mean=0.0, std=1.0), DEPTH, DEPTH, DEPTH + 1),
    "normals": (TargetSpec("normals"), NORMALS, NORMALS, -NORMALS),
    "regression": (
        TargetSpec("scalar", unit="years", mean=0.0, std=1.0),
        SCALARS,
        SCALARS[:, None],
        SCALARS[:, None] + 9,
    ),
    "multilabel": (
        TargetSpec("multilabel", classes=CLASSES),
        LABELS,
        20.0 * LABELS - 10,
        10 - 20.0 * LABELS,
    ),
    "boundaries": (TargetSpec("mask", classes=CLASSES), EDGES, 20 * EDGE_MAP - 10, 10 - 20 * EDGE_MAP),
}


def scored(task: Task, output: Tensor, target: Tensor) -> dict[str, float]:
    metrics = task.metrics()
    metrics.update(output, target)
    return metrics.compute()


@pytest.mark.parametrize("kind", CASES)
def test_the_right_prediction_is_better_by_every_metric(kind: str) -> None:
    spec, target, right, wrong = CASES[kind]
    task = build_task("t", TaskConfig(kind=kind), spec)
    good, bad = scored(task, right, target), scored(task, wrong, target)
    assert good.keys() == bad.keys() == task.metric_info.keys()
    for name, info in task.metric_info.items():
        if kind == "boundaries" and name == "recall":
            continue  # predicting all finds all: precision tells them apart
        assert (good[name] > bad[name]) is info.higher_is_better, name
        assert (
            not info.share or 0 <= bad[name] <= good[name] <= 1
        )  # a share is a fraction, never a percentage


def test_a_metric_that_was_not_measured_leaves_no_gain() -> None:
    tasks = {"age": build_task("age", TaskConfig(kind="regression"), CASES["regression"][0])}
    for metrics in ({"age": {"rmse": 1.0}}, {}):
        with pytest.raises(ConfigError, match=r"age\.mae was not measured"):
            delta_m(metrics, {"age": {"mae": 5.0}}, tasks)
