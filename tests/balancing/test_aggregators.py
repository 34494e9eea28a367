"""Every method of gradients leaves what TorchJD makes of explicitly stacked task gradients, and forgets nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torchjd import aggregation as jd

from compactmtl.balancing import NAMES, balancer
from compactmtl.errors import ConfigError, MissingDependencyError
from tests.support.small_net import TASKS, small_net


def nash(jacobian: torch.Tensor) -> torch.Tensor:
    """The direction of norm 1 or less with G a = 1/a; TorchJD's own solver gives up unseen on these gradients."""
    gramian = (jacobian @ jacobian.T).numpy()
    solution = root(lambda logs: gramian @ np.exp(logs) * np.exp(logs) - 1, -np.log(gramian.diagonal()) / 2)
    assert solution.success
    direction = torch.from_numpy(np.exp(solution.x)) @ jacobian
    shortened: torch.Tensor = direction / direction.norm().clamp(min=1)
    return shortened


# what each name stands for, by TorchJD's own interface to the whole jacobian
REFERENCES: dict[str, Callable[[], Any]] = {
    "upgrad": jd.UPGrad,
    "dualproj": jd.DualProj,
    "mgda": jd.MGDA,
    "pcgrad": jd.PCGrad,
    "gradvac": jd.GradVac,
    "cagrad": lambda: jd.CAGrad(0.4),
    "imtl_g": jd.IMTLG,
    "nash_mtl": lambda: nash,
    "aligned_mtl": jd.AlignedMTL,
    "config": jd.ConFIG,
    "fairgrad": lambda: jd.FairGrad(1.0),
    "graddrop": jd.GradDrop,
    "excess_mtl": jd.ExcessMTL,
    "pcd": jd.PCD,
    "krum": lambda: jd.Krum(0),
    "trimmed_mean": lambda: jd.TrimmedMean(1),
    "random_gradient": jd.Random,
}
STATEFUL = ("gradvac", "nash_mtl", "excess_mtl", "pcd")
STEPS = 3
# gradvac adds 1e-8 to its denominators, of gradients of another scale here. Iterative solvers stop early and start from slightly other numbers: fairgrad's least squares at 1e-8, cagrad's and
# nash_mtl's ridge of 1e-6 is seen where gradients conflict
LOOSE = {"gradvac": 1e-6, "fairgrad": 1e-5, "cagrad": 1e-4, "nash_mtl": 1e-5}


def close(one: torch.Tensor, other: torch.Tensor, name: str) -> None:
    # 1e-9: float64 with a gramian whose condition is about 1e3
    torch.testing.assert_close(one, other, rtol=LOOSE.get(name, 1e-9), atol=LOOSE.get(name, 1e-9))


@pytest.mark.parametrize("name", REFERENCES)
def test_the_encoder_follows_the_aggregated_jacobian(name: str) -> None:
    net, method, reference = small_net(), balancer(name, TASKS), REFERENCES[name]()
    for step in range(STEPS):
        torch.manual_seed(step)
        net.follow(method, step)
        torch.manual_seed(step)
        close(net.gradient(), reference(net.jacobian(step)), name)


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "excess_mtl"])
def test_at_features_the_aggregate_goes_backward_once(name: str) -> None:
    net, method, reference = small_net(), balancer(name, TASKS, at="features"), REFERENCES[name]()
    for step in range(STEPS):
        torch.manual_seed(step)
        net.follow(method, step)
        torch.manual_seed(step)
        close(net.gradient(), net.through_encoder(reference(net.feature_jacobian(step)), step), name)


@pytest.mark.parametrize("at", ["features", "shared_parameters"])
def test_each_head_follows_its_own_loss(at: Any) -> None:
    net = small_net()
    net.follow(balancer("mgda", {"a": 1.0, "b": 0.5, "c": 2.0}, at=at))
    for task, weight in (("a", 1.0), ("b", 0.5), ("c", 2.0)):
        loss = weight * net.losses(net.features(0), 0)[task]
        expected = torch.autograd.grad(loss, net.own()[task])
        for parameter, gradient in zip(net.own()[task], expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient)


def test_a_weight_scales_a_loss_before_its_gradient_is_taken() -> None:
    net, weights = small_net(), {"a": 1.0, "b": 0.5, "c": 2.0}
    net.follow(balancer("upgrad", weights))
    scaled = net.jacobian() * torch.tensor(list(weights.values()), dtype=torch.float64)[:, None]
    close(net.gradient(), jd.UPGrad()(scaled), "upgrad")


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "cagrad", "aligned_mtl"])
def test_small_gradients_are_balanced_too(name: str) -> None:
    """TorchJD takes a gramian with a trace below 1e-4 for 0 and then averages: gradients by features are that small."""
    net, method = small_net(), balancer(name, TASKS)
    net.follow(method)
    expected = net.gradient()
    net.scales = tuple(scale * 1e-6 for scale in net.scales)
    net.follow(balancer(name, TASKS))
    close(net.gradient() * 1e6, expected, name)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_restored_method_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    net, whole, first, second = small_net(), *(balancer(name, TASKS) for _ in range(3))
    for step in range(4):
        torch.manual_seed(step)
        net.follow(whole, step)
        expected = net.gradient()
        torch.manual_seed(step)
        if step == 2:
            second.load_state_dict(first.state_dict())
        net.follow(first if step < 2 else second, step)
        assert torch.equal(net.gradient(), expected)


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_of_tensors_and_numbers(name: str, tmp_path: Any) -> None:
    net, method = small_net(), balancer(name, TASKS)
    for step in range(2):
        net.follow(method, step)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize(("name", "package"), [("cagrad", "cvxpy"), ("upgrad", "quadprog")])
def test_a_missing_solver_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(
        "torchjd._mixins.find_spec", lambda wanted: None if wanted == package else find_spec(wanted)
    )
    with pytest.raises(MissingDependencyError, match=package) as caught:
        balancer(name, TASKS)
    assert caught.value.exit_code == 3
    assert "compactmtl[balancing]" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("upgrad", {"options": {"preference": [1.0, 2.0]}}, "2 values for 3 tasks"),
        ("mgda", {"options": {"epsilom": 1.0}}, "epsilom"),
        ("excess_mtl", {"at": "features"}, "others in each batch"),
        ("db_mtl", {"at": "features"}, "others in each batch"),
        ("krum", {"options": {"n_byzantine": 1}}, "needs 4 tasks"),
        ("trimmed_mean", {"options": {"trim": 2}}, "needs 5 tasks"),
        ("dwa", {"at": "features"}, "compares no gradients"),
        ("equal", {"options": {"x": 1}}, "x"),
    ],
)
def test_options_that_do_not_fit(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        balancer(name, TASKS, **arguments)


def test_a_weight_of_zero_has_no_gradient_to_balance() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.b\.weight is 0"):
        balancer("mgda", {"a": 1.0, "b": 0.0})


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_recipe_trains_a_step_and_says_its_factors(name: str) -> None:
    net, method = small_net(), balancer(name, TASKS).double()
    net.follow(method)
    assert torch.isfinite(net.gradient()).all()
    assert float(net.gradient().norm()) > 0
    assert method.log().keys() == set(TASKS)
