"""A plain training loop with a `Shrinking` in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from compactmtl.loops import Shrinking
from compactmtl.surgery import CompactResult, apply_plan
from tests.loops.nets import EPOCHS, STEPS, TwoHeads, adam, backward, batches, example, loss_of, two_heads

SETTINGS: dict[str, Any] = {"min_channels": 2, "every": 2, "start": 0.1, "end": 0.6, "importance_steps": 4}


def shrinking_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float64, **more: Any
) -> Shrinking:
    arguments = {"mac_reduction": 0.5, **SETTINGS, **more}
    return Shrinking(model, optimizer, example(dtype), total_steps=STEPS, **arguments)


def train(
    shrinking: Shrinking,
    epochs: range = range(EPOCHS),
    after_backward: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    for epoch in epochs:
        for image in batches(epoch):
            shrinking.optimizer.zero_grad()
            backward(loss_of(shrinking.model(image), image))
            after_backward()
            shrinking.optimizer.step()
            assert shrinking.step()
            after_step()
        shrinking.end_epoch()


def trained(**more: Any) -> tuple[nn.Module, Shrinking]:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model), **more)
    train(shrinking)
    return model, shrinking


def assert_same_function(one: nn.Module, other: nn.Module, tolerance: float = 1e-9) -> None:
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for name, expected in one.eval()(image).items():
            torch.testing.assert_close(other.eval()(image)[name], expected, rtol=0, atol=tolerance)


def whole(result: CompactResult) -> None:
    """The compact model is what the plan makes of a network as it is built."""
    again = apply_plan(TwoHeads().double(), result.plan)
    assert [v.shape for v in again.state_dict().values()] == [
        v.shape for v in result.model.state_dict().values()
    ]
