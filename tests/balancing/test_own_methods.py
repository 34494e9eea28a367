"""GradNorm and DB-MTL, step by step against their papers' formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compactmtl.balancing import Balancer, balancer
from tests.support.small_net import TASKS, Net, small_net

Array = NDArray[np.float64]


def losses_of(net: Net, step: int) -> Array:
    return np.array([float(loss.detach()) for loss in net.losses(net.features(step), step).values()])


class Adam:
    """arXiv:1412.6980, algorithm 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.first, self.second, self.steps = lr, np.zeros(3), np.zeros(3), 0

    def step(self, weights: Array, slope: Array) -> Array:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return weights - self.lr * first / (np.sqrt(second) + 1e-8)


@pytest.mark.parametrize("at", ["features", "shared_parameters"])
def test_gradnorm(at: Any) -> None:
    net, found = small_net(), balancer("gradnorm", TASKS, at=at, options={"alpha": 0.5, "lr": 0.1})
    weights, adam, start = np.ones(3), Adam(0.1), losses_of(net, 0)
    for step in range(4):
        net.follow(found, step)
        parameters = net.jacobian(step).numpy()
        np.testing.assert_allclose(net.gradient().numpy(), weights @ parameters, rtol=1e-9)
        head = net.own()["b"][0]
        (own,) = torch.autograd.grad(net.losses(net.features(step), step)["b"], [head])
        assert head.grad is not None
        np.testing.assert_allclose(head.grad.numpy(), weights[1] * own.numpy(), rtol=1e-9)
        shared = net.feature_jacobian(step).numpy() if at == "features" else parameters
        norms = np.linalg.norm(shared, axis=1)
        rates = losses_of(net, step) / start
        target = (weights * norms).mean() * (rates / rates.mean()) ** 0.5
        weights = adam.step(weights, np.sign(weights * norms - target) * norms)
        weights = np.maximum(weights, 1e-3) * 3 / np.maximum(weights, 1e-3).sum()


def test_db_mtl() -> None:
    net, found = small_net(), balancer("db_mtl", TASKS, options={"beta": 0.9, "sigma": 0.5})
    average: Array = np.zeros(())
    for step in range(4):
        net.follow(found, step)
        logarithmic = net.jacobian(step).numpy() / losses_of(net, step)[:, None]
        kept = 0.9 / (step + 1) ** 0.5
        average = logarithmic + kept * (average - logarithmic)
        norms = np.linalg.norm(average, axis=1)
        expected = norms.max() * (average / norms[:, None]).sum(0)
        np.testing.assert_allclose(net.gradient().numpy(), expected, rtol=1e-9)


def restored(name: str, found: Balancer) -> Balancer:
    fresh = balancer(name, TASKS)
    fresh.load_state_dict(found.state_dict())
    return fresh


@pytest.mark.parametrize("name", ["gradnorm", "db_mtl"])
def test_they_go_on_from_their_state(name: str, tmp_path: Any) -> None:
    net, found = small_net(), balancer(name, TASKS)
    for step in range(2):
        net.follow(found, step)
    torch.save(found.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    other = restored(name, found)
    net.follow(found, 2)
    expected = net.gradient()
    net.follow(other, 2)
    assert torch.equal(net.gradient(), expected)
