"""Uncertainty weighting learns the weights at which the paper's likelihood is largest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from compactmtl.balancing import Uncertainty, balancer
from compactmtl.tasks.registry import all_classes


@dataclass
class FakeTask:
    uncertainty_scale: float
    weight: float = 1.0


def test_formula_for_both_kinds() -> None:
    tasks = {"age": FakeTask(0.5, 2.0), "gender": FakeTask(1.0)}
    uncertainty = balancer("uncertainty", tasks)  # type: ignore[arg-type]
    assert isinstance(uncertainty, Uncertainty)
    with torch.no_grad():
        uncertainty.log_variances.copy_(torch.tensor([0.7, -0.4]))
    combined = uncertainty.combine({"age": torch.tensor(3.0), "gender": torch.tensor(1.5)})
    expected = 2 * (0.5 * math.exp(-0.7) * 3 + 0.35) + (math.exp(0.4) * 1.5 - 0.2)
    assert combined.item() == pytest.approx(expected, rel=1e-6)  # float32
    assert uncertainty.log() == pytest.approx({"age": math.exp(-0.7), "gender": math.exp(0.4)}, rel=1e-6)


def test_only_tasks_of_a_real_quantity_have_half_their_loss() -> None:
    kinds = all_classes()
    for kind in ("depth", "disparity", "normals", "regression"):
        assert kinds[kind].uncertainty_scale == 0.5
    for kind in (
        "segmentation",
        "boundaries",
        "classification",
        "multilabel",
        "binned_regression",
        "instances",
    ):
        assert kinds[kind].uncertainty_scale == 1


def test_an_optimizer_finds_the_minimum_in_closed_form() -> None:
    uncertainty = balancer("uncertainty", ["a", "b"])
    optimizer = torch.optim.SGD(uncertainty.parameters(), lr=0.5)
    losses = {"a": torch.tensor(0.2), "b": torch.tensor(4.0)}
    for _ in range(200):
        optimizer.zero_grad()
        uncertainty.combine(losses).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # d/ds (exp(-s) L + s/2) = 0 at exp(s) = 2 L.
    expected = {name: 1 / (2 * float(loss)) for name, loss in losses.items()}
    assert uncertainty.log() == pytest.approx(expected, rel=1e-4)  # the last steps of gradient descent


def test_state_is_the_log_variances_alone() -> None:
    uncertainty = balancer("uncertainty", ["a", "b"])
    assert list(uncertainty.state_dict()) == ["log_variances"]


def test_half_precision_losses_are_summed_in_single() -> None:
    uncertainty = balancer("uncertainty", ["a"])
    assert uncertainty.combine({"a": torch.tensor(1.0, dtype=torch.bfloat16)}).dtype == torch.float32
