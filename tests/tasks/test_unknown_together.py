"""A batch in which each task knows other rows trains as each task on its own rows: exact, in float64, over all kinds.

The network has no batch norm, whose statistics are of all rows whatever is known of them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from compactmtl.data.base import Batch
from compactmtl.models import MultiTaskModel
from compactmtl.tasks import Task
from compactmtl.tasks.registry import task_kinds
from compactmtl.verify.accuracy import evaluate, torch_runner
from tests.tasks.test_unknown import CASES, IMAGES, SIDE, Case, batch, by_image, hidden

FIRST = {case.kind: case for case in reversed(CASES)}  # each kind with its default loss
WIDTH = 5


class Head(nn.Module):
    """A linear function of a pixel's features, or of their mean; a positive one where the task needs that."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.layer = task, nn.Linear(WIDTH, task.channels)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.task.dense:
            values: Tensor = self.layer(features.mean((2, 3)))
            return values
        cells = avg_pool2d(features, self.task.stride)
        maps: Tensor = self.layer(cells.movedim(1, -1)).movedim(-1, 1)
        return maps.exp() if self.task.target_kind in ("depth", "disparity") else maps


def network(tasks: dict[str, Task], seed: int) -> MultiTaskModel:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Tanh())
    return MultiTaskModel(encoder, {name: Head(task) for name, task in tasks.items()}).double()


def picture(seed: int) -> Tensor:
    return torch.randn(
        IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def named(case: Case, name: str) -> Task:
    """The kind's task under a name of its own."""
    from dataclasses import replace

    return replace(case.task(), name=name, target=name)


TASKS = {f"task_{kind}": named(case, f"task_{kind}") for kind, case in FIRST.items()}


def gradients(model: MultiTaskModel, losses: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(torch.stack(losses).sum(), list(model.parameters()), allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(model.parameters(), found, strict=True)
    ]


def test_every_kind_is_here() -> None:
    assert {task.kind for task in TASKS.values()} == set(task_kinds())


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    masks=st.lists(
        st.lists(st.booleans(), min_size=IMAGES, max_size=IMAGES), min_size=len(TASKS), max_size=len(TASKS)
    ),
)
def test_the_batchs_gradient_is_the_sum_of_those_of_each_tasks_rows(
    seed: int, masks: list[list[bool]]
) -> None:
    model, images = network(TASKS, seed), picture(seed)
    targets = {name: batch(task, seed)[1] for name, task in TASKS.items()}
    known = dict(zip(TASKS, masks, strict=True))
    outputs = model(images)
    together = {
        name: task.loss(outputs[name], hidden(task, targets[name], by_image(known[name], targets[name])))
        for name, task in TASKS.items()
    }
    alone = {}
    for name, task in TASKS.items():
        rows = [row for row, here in enumerate(known[name]) if here]
        if rows:
            alone[name] = task.loss(model(images[rows])[name], targets[name][rows])
            torch.testing.assert_close(together[name], alone[name], rtol=1e-12, atol=1e-12)
        else:
            assert together[name] == 0
    expected = (
        gradients(model, list(alone.values())) if alone else [torch.zeros_like(p) for p in model.parameters()]
    )
    for found, one in zip(gradients(model, list(together.values())), expected, strict=True):
        # sums over rows in another order: 1e-16 a term
        torch.testing.assert_close(found, one, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    masks=st.lists(
        st.lists(st.booleans(), min_size=IMAGES - 1, max_size=IMAGES - 1),
        min_size=len(TASKS),
        max_size=len(TASKS),
    ),
    cut=st.integers(1, IMAGES - 1),
)
def test_the_splits_metrics_are_those_of_each_tasks_rows(
    seed: int, masks: list[list[bool]], cut: int
) -> None:
    pytest.importorskip("pycocotools")
    model, images = network(TASKS, seed), picture(seed)
    targets = {name: batch(task, seed)[1] for name, task in TASKS.items()}
    for name, task in TASKS.items():
        if task.target_kind == "mask":
            targets[name][0, :, :4], targets[name][0, :, 4:] = 0, 1  # boundaries need one
    known = {name: [True, *mask] for name, mask in zip(TASKS, masks, strict=True)}
    given_targets = {
        name: hidden(task, targets[name], by_image(known[name], targets[name]))
        for name, task in TASKS.items()
    }
    runner = torch_runner(model)

    def batches(rows: list[list[int]], of: dict[str, Tensor]) -> list[Batch]:
        return [
            {"image": images[some], "targets": {name: one[some] for name, one in of.items()}} for some in rows
        ]

    everything = list(range(IMAGES))
    found = evaluate(runner, batches([everything[:cut], everything[cut:]], given_targets), TASKS)
    for name, task in TASKS.items():
        rows = [row for row, here in enumerate(known[name]) if here]
        (alone,) = evaluate(runner, batches([rows], {name: targets[name]}), {name: task}).values()
        assert found[name] == pytest.approx(alone, rel=1e-12, abs=1e-12)
