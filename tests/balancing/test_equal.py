"""Equal weighting is the recipe's weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from compactmtl.balancing import balancer


def losses() -> dict[str, Tensor]:
    return {name: torch.tensor(v, requires_grad=True) for name, v in [("a", 2.0), ("b", 3.0)]}


def test_a_plain_sum_by_default() -> None:
    assert balancer("equal", ["a", "b"]).combine(losses()).item() == 5


def test_weights_scale_losses_and_gradients() -> None:
    both = losses()
    equal = balancer("equal", {"a": 0.5, "b": 2.0})
    total = equal.combine(both)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == 7
    assert [float(both[name].grad or 0) for name in "ab"] == [0.5, 2.0]
    assert equal.log() == {"a": 0.5, "b": 2.0}


def test_it_has_no_parameters() -> None:
    assert not list(balancer("equal", ["a"]).parameters())
