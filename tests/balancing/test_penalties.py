"""The comparators: gradient penalties, sharpness-aware steps and pseudo-tasks, each against its own formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactmtl.balancing.penalties import input_gradient_penalty, weight_gradient_penalty
from compactmtl.balancing.pta import PseudoTasks
from compactmtl.balancing.sam import uphill
from compactmtl.balancing.statistics import still_statistics


def test_the_input_penalty_of_a_linear_model_is_the_mean_of_its_slopes() -> None:
    model, x = nn.Linear(4, 1).double(), torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    outputs = model(x)[:, 0]
    penalty = input_gradient_penalty(outputs.square().mean(), x)
    expected = (2 * outputs[:, None] * model.weight).square().sum(1).mean()  # d(o²)/dx = 2 o w
    torch.testing.assert_close(penalty, expected)
    for parameter in model.parameters():
        one, other = (torch.autograd.grad(v, parameter, retain_graph=True)[0] for v in (penalty, expected))
        torch.testing.assert_close(one, other)


def test_the_weight_penalty_of_a_linear_model() -> None:
    model, x = nn.Linear(4, 1, bias=False).double(), torch.randn(6, 4, dtype=torch.float64)
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    loss = model(x).square().mean()
    penalty = weight_gradient_penalty(loss, [*model.parameters(), frozen])
    gram = x.T @ x / 6
    torch.testing.assert_close(penalty, (2 * model.weight @ gram).square().sum())  # dL/dw = 2 w G
    (slope,) = torch.autograd.grad(penalty, [model.weight])
    torch.testing.assert_close(slope, 8 * model.weight @ gram @ gram)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_weights_move_by_rho_and_come_back_to_the_bit(adaptive: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[1].weight.requires_grad_(False)
    model(torch.randn(5, 4)).square().sum().backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    slopes = [p.grad for p in model.parameters()]
    sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in model.parameters()]
    length = torch.stack([(s * g).norm() for s, g in zip(sizes, slopes, strict=True) if g is not None]).norm()
    with uphill(model.parameters(), 0.05, adaptive=adaptive):
        for parameter, was, slope, size in zip(model.parameters(), before, slopes, sizes, strict=True):
            step = torch.zeros_like(was) if slope is None else 0.05 * size**2 * slope / length
            torch.testing.assert_close(parameter.detach() - was, step, rtol=1e-4, atol=1e-6)
        if not adaptive:
            moved = [p.detach() - was for p, was in zip(model.parameters(), before, strict=True)]
            assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.05, rel=1e-4)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("slope", [0.0, float("inf"), float("nan")])
def test_a_gradient_of_no_direction_moves_nothing(slope: float) -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), slope)
    with uphill([parameter], 0.05):
        assert torch.equal(parameter, torch.ones(3))


def test_statistics_stay_while_the_batch_still_normalizes() -> None:
    norm, x = nn.BatchNorm1d(3).train(), torch.randn(8, 3)
    expected = nn.BatchNorm1d(3).train()(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with still_statistics(norm):
        torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    norm(x)
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]


def test_pseudo_tasks_give_each_task_further_heads() -> None:
    heads: dict[str, nn.Module] = {"a": nn.Linear(5, 3), "b": nn.Linear(5, 2)}
    pseudo = PseudoTasks(heads, 4, "independent")
    features = torch.randn(2, 5)
    outputs = pseudo.outputs(features, None)
    assert {task: len(heads) for task, heads in outputs.items()} == {"a": 3, "b": 3}
    assert all(not torch.equal(one, heads["a"](features)) for one in outputs["a"])
    assert all(parameter.requires_grad for parameter in pseudo.parameters())
    assert not any(p.requires_grad for p in PseudoTasks(heads, 2, "freeze").parameters())


def test_perturbed_heads_move_by_seed_and_epoch_alone() -> None:
    heads: dict[str, nn.Module] = {"a": nn.Linear(50, 30)}
    one, other, still = (
        PseudoTasks(heads, 3, control, noise=0.1) for control in ("perturb", "perturb", "freeze")
    )
    before = [parameter.detach().clone() for parameter in one.parameters()]
    for pseudo in (one, other, still):
        torch.randn(3)
        pseudo.end_epoch(4)
    moved = torch.cat([(p.detach() - was).flatten() for p, was in zip(one.parameters(), before, strict=True)])
    assert float(moved.std()) == pytest.approx(0.1, rel=0.1)  # of 3060 draws
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(p, was) for p, was in zip(still.parameters(), before, strict=True))
