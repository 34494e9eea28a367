"""GradNorm, DB-MTL and Nash-MTL, step by step against their papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compactmtl.balancing import Balancer, balancer
from compactmtl.balancing.methods.nash_mtl import RIDGE, bargain
from compactmtl.errors import TrainingError
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
    net, method = small_net(), balancer("gradnorm", TASKS, at=at, options={"alpha": 0.5, "lr": 0.1})
    weights, adam, start = np.ones(3), Adam(0.1), losses_of(net, 0)
    for step in range(4):
        net.follow(method, step)
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
    net, method = small_net(), balancer("db_mtl", TASKS, options={"beta": 0.9, "sigma": 0.5})
    average: Array = np.zeros(())
    for step in range(4):
        net.follow(method, step)
        logarithmic = net.jacobian(step).numpy() / losses_of(net, step)[:, None]
        kept = 0.9 / (step + 1) ** 0.5
        average = logarithmic + kept * (average - logarithmic)
        norms = np.linalg.norm(average, axis=1)
        expected = norms.max() * (average / norms[:, None]).sum(0)
        np.testing.assert_allclose(net.gradient().numpy(), expected, rtol=1e-9)


def restored(name: str, method: Balancer) -> Balancer:
    fresh = balancer(name, TASKS)
    fresh.load_state_dict(method.state_dict())
    return fresh


@pytest.mark.parametrize("name", ["gradnorm", "db_mtl"])
def test_they_go_on_from_their_state(name: str, tmp_path: Any) -> None:
    net, method = small_net(), balancer(name, TASKS)
    for step in range(2):
        net.follow(method, step)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    other = restored(name, method)
    net.follow(method, 2)
    expected = net.gradient()
    net.follow(other, 2)
    assert torch.equal(net.gradient(), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), tasks=st.integers(2, 6), size=st.floats(-12, 6), conflict=st.floats(0, 1.2))
def test_nash_mtl_agrees_whatever_the_gradients_size(
    seed: int, tasks: int, size: float, conflict: float
) -> None:
    """G a = 1/a, of gradients whose sizes differ and which conflict up to having 0 between them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, 8, generator=generator, dtype=torch.float64)
    rows = (rows - conflict * rows.mean(0)) * 10.0**size * torch.rand(tasks, 1, generator=generator)
    gramian = rows @ rows.T
    factors = bargain(gramian)
    assert (factors > 0).all()
    ridge = RIDGE * gramian.diagonal() * factors**2  # it matters where the gradients add up to 0
    torch.testing.assert_close(
        (gramian @ factors) * factors + ridge, torch.ones_like(factors), rtol=0, atol=1e-6
    )


def test_nash_mtl_of_opposite_gradients_stays_finite() -> None:
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert float(bargain(opposite).max()) < 1e4
    with pytest.raises(ArithmeticError):
        bargain(
            torch.tensor([[1.0, -2.0], [-2.0, 1.0]], dtype=torch.float64)
        )  # no gradients have these products


def test_nash_mtl_keeps_its_factors_between_solutions() -> None:
    net = small_net()
    method, second = (balancer("nash_mtl", TASKS, options={"every": 2, "max_norm": 0.0}) for _ in range(2))
    net.follow(method, 0)
    factors = torch.tensor(list(method.log().values()), dtype=torch.float64)
    second.load_state_dict(method.state_dict())
    for one in (method, second):
        net.follow(one, 1)
        torch.testing.assert_close(net.gradient(), factors @ net.jacobian(1))
        net.follow(one, 2)
        assert not np.allclose(list(one.log().values()), factors)
    net.scales = (1.0, float("nan"), 1.0)
    with pytest.raises(TrainingError, match="task 'b'"):
        net.follow(method, 3)
