"""A balancer is chosen by name and insists on one loss for each task."""

from __future__ import annotations

import pytest
import torch

from compactmtl.balancing import Equal, Uncertainty, balancer
from compactmtl.errors import ConfigError


def test_by_name() -> None:
    assert isinstance(balancer("equal", ["a"]), Equal)
    assert isinstance(balancer("uncertainty", ["a"]), Uncertainty)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        balancer("uncertainity", ["a"])
    assert "uncertainty" in caught.value.hint


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_below_zero(weight: float) -> None:
    with pytest.raises(ConfigError, match="task b"):
        balancer("equal", {"a": 1.0, "b": weight})


def test_no_task() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        balancer("equal", [])


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "c"]])
def test_losses_of_other_tasks(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be combined"):
        balancer("equal", ["a", "b"]).combine({name: torch.tensor(1.0) for name in names})
