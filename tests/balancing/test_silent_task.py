"""A batch without a label of some task: no balancer makes a number that is not finite, or it says so plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compactmtl.balancing import NAMES, Balancer, balancer
from compactmtl.errors import TrainingError
from tests.support.small_net import TASKS, Net, small_net


def refusal_of(net: Net, method: Balancer, step: int) -> TrainingError | None:
    try:
        net.follow(method, step)
    except TrainingError as error:
        return error
    return None


@pytest.mark.parametrize("silent", [("c",), TASKS], ids=["one task", "all tasks"])
@pytest.mark.parametrize("first", [0, 2], ids=["first batch", "third batch"])
@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_a_label_gets_no_gradient_and_nothing_becomes_nan(
    name: str, first: int, silent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, method = small_net(), balancer(name, TASKS)
    every = net.losses

    def losses(features: Tensor, step: int) -> dict[str, Tensor]:
        # float32, as losses are in training; zero with a graph, as a loss of nothing known is
        return {
            task: loss.float() * (0 if step == first and task in silent else 1)
            for task, loss in every(features, step).items()
        }

    monkeypatch.setattr(net, "losses", losses)
    for step in range(4):
        if (refusal := refusal_of(net, method, step)) is not None:
            assert step == first
            assert refusal.hint
            return
        own = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
        state = [value for value in method.state_dict().values() if isinstance(value, Tensor)]
        assert all(
            value.isfinite().all() for value in [net.gradient(), *own, *state] if value.is_floating_point()
        )
        if step == first:
            heads = [p.grad for task in silent for p in net.heads[task].parameters()]
            assert all(grad is None or not grad.any() for grad in heads)
        if method.relooks:
            with torch.no_grad():
                method.after_step(net.losses(net.features(step), step))
