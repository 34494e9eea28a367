"""The proximal step follows torch's own optimizers and solves group lasso problems with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from compactmtl.errors import ArtifactError, ConfigError, TrainingError
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.sparsity import ChannelGroups, GroupLasso, ProximalStep, split_parameter_groups

Build = Callable[[list[dict[str, object]]], Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, betas=(0.8, 0.95), eps=1e-6),
    "adamw": lambda p: AdamW(p, lr=0.01, foreach=True),
}


class Columns(nn.Module):
    """A linear layer and a gain; group i is column i of the weight together with entry i of the gain."""

    def __init__(self, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, dtype=torch.float64))
        self.gain = nn.Parameter(torch.randn(inputs, dtype=torch.float64))
        self.free = nn.Parameter(torch.randn(outputs, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + (x * self.gain).sum(1, keepdim=True) + self.free


def groups_of(model: Columns, only_weight: bool = False) -> ChannelGroups:
    n = len(model.gain)
    indices = np.arange(n, dtype=np.int64)[:, None]
    members = (Member("weight", 1, indices, "producer"), Member("gain", 0, indices, "affine"))
    family = GroupFamily("columns", members[: 1 if only_weight else 2], n, 1.0, 1.0)
    return ChannelGroups([family], dict(model.named_parameters()))


def setup(
    build: Build, strength: float, only_weight: bool = False
) -> tuple[Columns, Optimizer, ProximalStep]:
    torch.manual_seed(0)
    model = Columns()
    groups = groups_of(model, only_weight)
    optimizer = build(split_parameter_groups(model, groups, 0.01))
    return model, optimizer, ProximalStep(optimizer, GroupLasso(groups, strength))


def train_step(model: Columns, optimizer: Optimizer, seed: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    optimizer.zero_grad()
    (model(x) - x[:, :4] * torch.tensor([1.0, 2.0, 3.0, 4.0])).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_is_optimal_in_the_optimizers_own_metric(name: str) -> None:
    model, optimizer, proximal = setup(OPTIMIZERS[name], strength=0.3)
    lr = optimizer.param_groups[0]["lr"]
    for seed in range(12):
        before = [model.weight.detach().clone(), model.gain.detach().clone()]
        train_step(model, optimizer, seed)
        z = [p.detach().clone() for p in (model.weight, model.gain)]
        proximal.step()
        x = [p.detach() for p in (model.weight, model.gain)]
        # The metric, read off torch's own step: Adam moved each element by lr·m̂/D.
        metric = []
        for parameter, old, new in zip((model.weight, model.gain), before, z, strict=True):
            state = optimizer.state[parameter]
            if "exp_avg" not in state:
                metric.append(torch.ones_like(new))
                continue
            beta1 = optimizer.param_groups[1]["betas"][0]
            moment = state["exp_avg"] / (1 - beta1 ** float(state["step"]))
            metric.append(lr * moment / (old - new))
        if any(not torch.isfinite(d).all() for d in metric):
            continue  # the moments of a group that just died are cleared, and say nothing of this step
        for i in range(6):
            zi, xi, di = (torch.cat([v[0][:, i], v[1][i : i + 1]]) for v in (z, x, metric))
            t = (
                lr * (10 if name == "momentum" else 1) * 0.3 * math.sqrt(5)
            )  # a buffer of 0.9 moves 10 times lr
            if xi.norm() > 0:
                # The metric is recovered by a division of small differences: 1e-9 of float64's 1e-16.
                assert float((di * (xi - zi) + t * xi / xi.norm()).norm()) <= 1e-9 * max(
                    t, float((di * zi).norm())
                )
            else:
                assert float((di * zi).norm()) <= t * (1 + 1e-9) or i in dead_of(proximal)


def dead_of(proximal: ProximalStep) -> list[int]:
    return [int(i) for i in proximal.state_dict()["dead"][0].nonzero()]


def reference_group_lasso(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """min ½/N‖x Wᵀ − y‖² + λ√d Σ‖W[:, i]‖ by FISTA with a safe step, float64."""
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64)
    rate = 1 / float(torch.linalg.eigvalsh(x.T @ x / len(x)).max())
    ahead, momentum = weight.clone(), 1.0
    for _ in range(20_000):
        new = ahead - rate * (x @ ahead.T - y).T @ x / len(x)
        norms = new.norm(dim=0)
        new = new * (1 - rate * strength * math.sqrt(y.shape[1]) / norms).clamp_min(0)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - weight)
        if (new - weight).abs().max() < 1e-14:
            break
        weight, momentum = new, following
    return weight


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_it_converges_to_the_group_lasso_solution_and_its_support(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    truth = torch.zeros(3, 8, dtype=torch.float64)
    truth[:, [1, 4, 6]] = torch.randn(3, 3, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.0, 2.0, 0.5]
    )
    y = x @ truth.T + 0.1 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    strength = 0.1
    expected = reference_group_lasso(x, y, strength)
    model = nn.Linear(8, 3, bias=False, dtype=torch.float64)
    indices = np.arange(8, dtype=np.int64)[:, None]
    family = GroupFamily("fc", (Member("weight", 1, indices, "consumer"),), 8, 1.0, 1.0)
    groups = ChannelGroups([family], dict(model.named_parameters()))
    parameters = split_parameter_groups(model, groups, 0.0)
    optimizer: Optimizer
    if name.startswith("adam"):
        optimizer = (Adam if name == "adam" else AdamW)(parameters, lr=0.1, betas=(0.9, 0.95))
    else:
        optimizer = SGD(parameters, lr=0.05, momentum=0.9 * (name == "momentum"))
    proximal = ProximalStep(optimizer, GroupLasso(groups, strength))
    for _ in range(400):
        optimizer.zero_grad()
        ((model(x) - y).square().sum() / (2 * len(x))).backward()
        optimizer.step()
        proximal.step()
    weight = model.weight.detach()
    assert (expected.norm(dim=0) > 0).tolist() == [i in (1, 4, 6) for i in range(8)]
    assert torch.equal(weight.norm(dim=0) > 0, expected.norm(dim=0) > 0)
    # 400 steps contract the distance of plain gradient descent, the slowest, by about e⁻¹⁸.
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)


def test_a_group_that_dies_loses_its_moments_and_the_others_keep_theirs() -> None:
    model, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=10.0)
    died: set[int] = set()
    for seed in range(40):
        train_step(model, optimizer, seed)
        before = copy.deepcopy(optimizer.state[model.weight])
        proximal.step()
        dead = set(dead_of(proximal))
        state = optimizer.state[model.weight]
        for key in ("exp_avg", "exp_avg_sq"):
            for i in range(6):
                if i in dead - died:
                    assert state[key][:, i].abs().max() == 0
                else:
                    assert torch.equal(state[key][:, i], before[key][:, i])
        died = dead
    assert died, "a strong penalty kills something"
    assert float(state["step"]) == 40


@pytest.mark.slow
def test_a_dead_group_comes_back_when_its_gradient_wants_it() -> None:
    model, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=50.0)
    for seed in range(200):
        train_step(model, optimizer, seed)
        proximal.step()
    assert dead_of(proximal) == list(range(6))
    proximal.penalty.strength = 1e-3
    for seed in range(50):
        train_step(model, optimizer, seed)
        proximal.step()
    assert not dead_of(proximal)


def test_saved_state_makes_a_resumed_run_equal() -> None:
    def run(model: Columns, optimizer: Optimizer, proximal: ProximalStep, seeds: range) -> None:
        for seed in seeds:
            train_step(model, optimizer, seed)
            proximal.step()

    whole, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=1.0)
    run(whole, optimizer, proximal, range(20))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), proximal.state_dict()))
    run(whole, optimizer, proximal, range(20, 40))
    resumed, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=0.1)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    proximal.load_state_dict(saved[2])
    run(resumed, optimizer, proximal, range(20, 40))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_members_may_have_different_rates() -> None:
    model, _, _ = setup(OPTIMIZERS["sgd"], strength=0.3)
    groups = groups_of(model)
    optimizer = SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.gain], "lr": 0.02}], lr=1.0)
    proximal = ProximalStep(optimizer, GroupLasso(groups, 0.3))
    z = [model.weight.detach().clone(), model.gain.detach().clone()]
    proximal.step()
    for i in range(6):
        zi = torch.cat([z[0][:, i], z[1][i : i + 1]])
        xi = torch.cat([model.weight.detach()[:, i], model.gain.detach()[i : i + 1]])
        metric = torch.tensor([10.0] * 4 + [50.0], dtype=torch.float64)  # 1/lr
        gradient = metric * (xi - zi) + 0.3 * math.sqrt(5) * xi / xi.norm()
        assert float(gradient.norm()) <= 1e-12 * float((metric * zi).norm())


def test_it_waits_for_the_optimizers_first_step() -> None:
    model, _, proximal = setup(OPTIMIZERS["adam"], strength=100.0)
    before = model.weight.detach().clone()
    proximal.step()
    assert torch.equal(model.weight, before)


def test_strength_zero_and_rate_zero_change_nothing() -> None:
    model, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=0.0)
    train_step(model, optimizer, 0)
    before = model.weight.detach().clone()
    proximal.step()
    proximal.penalty.strength = 5.0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    proximal.step()
    assert torch.equal(model.weight, before)


def test_a_grouped_tensor_outside_the_loss_is_named() -> None:
    model, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=1.0)
    optimizer.zero_grad()
    (model.weight.sum() + model.free.sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with pytest.raises(TrainingError, match="gain"):
        proximal.step()


def test_weight_decay_on_groups_is_an_error() -> None:
    model, _, proximal = setup(OPTIMIZERS["sgd"], strength=1.0)
    with pytest.raises(ConfigError, match="weight decay") as caught:
        ProximalStep(AdamW(model.parameters(), weight_decay=0.1), proximal.penalty)
    assert "split_parameter_groups" in caught.value.hint


def test_tensors_outside_the_optimizer_are_an_error() -> None:
    model, _, proximal = setup(OPTIMIZERS["sgd"], strength=1.0)
    with pytest.raises(ConfigError, match="gain belongs to a channel group and does not train"):
        ProximalStep(SGD([model.weight, model.free], lr=0.1), proximal.penalty)


def test_other_optimizers_are_an_error() -> None:
    model, _, proximal = setup(OPTIMIZERS["sgd"], strength=1.0)
    with pytest.raises(ConfigError, match="RMSprop"):
        ProximalStep(RMSprop(model.parameters()), proximal.penalty)


def test_a_state_of_other_groups_is_an_error() -> None:
    _, _, proximal = setup(OPTIMIZERS["sgd"], strength=1.0)
    with pytest.raises(ArtifactError, match="other channel groups"):
        proximal.load_state_dict({"strength": 1.0, "count": 0, "dead": [torch.zeros(5, dtype=torch.bool)]})


def test_a_rate_of_zero_for_a_part_of_a_group_is_an_error() -> None:
    model, _, proximal = setup(OPTIMIZERS["sgd"], strength=1.0)
    optimizer = SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.gain], "lr": 0.0}], lr=1.0)
    with pytest.raises(TrainingError, match="gain has learning rate 0"):
        ProximalStep(optimizer, proximal.penalty).step()


def test_no_element_stays_subnormal() -> None:
    model, optimizer, proximal = setup(OPTIMIZERS["adam"], strength=0.02)
    with torch.no_grad():
        model.weight[0, 0] = 1e-36
    for seed in range(4):
        train_step(model, optimizer, seed)
        optimizer.state[model.weight]["exp_avg_sq"][1] = (
            0.0  # nothing holds the second row against the penalty
        )
        with torch.no_grad():
            model.weight[1] *= 1e-12
        proximal.step()
    sizes = model.weight.detach().abs()
    assert bool(((sizes == 0) | (sizes >= 1e-30)).all())
    assert float(sizes[2].max()) > 0
