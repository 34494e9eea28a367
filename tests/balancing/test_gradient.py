"""Gradients that cannot be balanced are errors that name the task; what is added after balancing is added as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.balancing import GradientBalancer, balanced_backward, balancer
from compactmtl.errors import ConfigError, TrainingError
from tests.support.host_reads import HostReads
from tests.support.small_net import TASKS, Net, flat, small_net

AT = pytest.mark.parametrize("at", ["features", "shared_parameters"])


class Slope(torch.autograd.Function):
    """The identity with a factor on its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.factor, None


def gradient_balancer(name: str, tasks: Any = TASKS, **arguments: Any) -> GradientBalancer:
    method = balancer(name, tasks, **arguments)
    assert isinstance(method, GradientBalancer)
    return method


def follow(net: Net, method: GradientBalancer, factors: dict[str, float], **arguments: Any) -> None:
    """As `Net.follow`, with the gradient of some losses multiplied on its way."""
    features = net.features(0)
    losses = net.losses(features, 0)
    changed = {task: Slope.apply(loss, factors.get(task, 1.0)) for task, loss in losses.items()}
    balanced_backward(method, changed, [features], net.encoder.parameters(), net.own(), **arguments)


@AT
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_its_task(at: Any, factor: float) -> None:
    with pytest.raises(TrainingError, match="gradient of task 'b' is not finite"):
        follow(small_net(), gradient_balancer("mgda", at=at), {"b": factor})


@AT
def test_a_gradient_lost_beside_anothers_names_its_task(at: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"gradient of task 'c' is ill-conditioned: .*of a, .*of b"
    ) as caught:
        follow(small_net(), gradient_balancer("imtl_g", at=at), {"c": 1e-18})
    assert "tasks.c.weight" in caught.value.hint


def test_a_gradient_of_zero_names_its_task() -> None:
    with pytest.raises(TrainingError, match="gradient of task 'a'"):
        follow(small_net(), gradient_balancer("pcgrad"), {"a": 0.0})


def test_a_solver_that_gives_up_tells_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    method = gradient_balancer("upgrad")
    monkeypatch.setattr("torchjd._linalg._dual_cone.solve_qp", lambda *_, **__: None)
    with pytest.raises(TrainingError, match=r"upgrad cannot aggregate gradients of norms .* of a"):
        follow(small_net(), method, {})


def unknown(net: Net, features: Tensor) -> dict[str, Tensor]:
    """Losses of a batch that knows nothing of task b."""
    return {**net.losses(features, 0), "b": (features * 0).sum()}


@AT
def test_a_task_that_the_batch_knows_nothing_of_takes_no_part(at: Any) -> None:
    net = small_net()
    features = net.features(0)
    balanced_backward(
        gradient_balancer("mgda", at=at),
        unknown(net, features),
        [features],
        net.encoder.parameters(),
        net.own(),
    )
    gradient = net.gradient()
    rest = {task: head for task, head in net.heads.items() if task != "b"}
    for parameter in net.encoder.parameters():
        parameter.grad = None
    features = net.features(0)
    losses = {task: loss for task, loss in net.losses(features, 0).items() if task != "b"}
    own = {task: list(head.parameters()) for task, head in rest.items()}
    balanced_backward(
        gradient_balancer("mgda", ["a", "c"], at=at), losses, [features], net.encoder.parameters(), own
    )
    torch.testing.assert_close(gradient, net.gradient())


def test_a_method_that_remembers_each_task_needs_them_all() -> None:
    net = small_net()
    features = net.features(0)
    with pytest.raises(TrainingError, match="task 'b'") as caught:
        balanced_backward(
            gradient_balancer("gradvac"),
            unknown(net, features),
            [features],
            net.encoder.parameters(),
            net.own(),
        )
    assert "larger batches" in caught.value.hint


@AT
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_penalty_is_added_after_balancing(at: Any, scale: float) -> None:
    def penalty(features: Tensor) -> Tensor:
        return features.square().sum()

    net, method = small_net(), gradient_balancer("mgda", at=at)
    net.follow(method)
    alone = net.gradient()
    added = flat(torch.autograd.grad(penalty(net.features(0)), list(net.encoder.parameters())))
    for parameter in net.encoder.parameters():
        parameter.grad = None
    features = net.features(0)
    balanced_backward(
        method,
        net.losses(features, 0),
        [features],
        net.encoder.parameters(),
        net.own(),
        penalty=penalty(features),
        scale=scale,
    )
    torch.testing.assert_close(net.gradient(), scale * (alone + added))


def test_an_overflow_under_a_loss_scaler_is_left_for_it_to_see() -> None:
    net = small_net()
    follow(net, gradient_balancer("mgda"), {"b": float("inf")}, scale=2.0)
    assert not bool(torch.isfinite(net.gradient()).all())


@AT
def test_maps_that_come_one_after_another_are_not_counted_twice(at: Any) -> None:
    """Σ of task gradients through two maps, of which the second is computed from the first, is the plain gradient."""
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    x = torch.randn(5, 4, dtype=torch.float64)

    def maps() -> list[Tensor]:
        one = first(x)
        return [one.view_as(one), second(one.tanh())]

    def losses(given: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"a": (given[0] * given[1]).square().mean(), "b": given[1].mean() ** 2}

    parameters = [*first.parameters(), *second.parameters()]
    expected = torch.autograd.grad(sum(losses(maps()).values()), parameters)  # type: ignore[arg-type]
    given = maps()
    method = gradient_balancer("graddrop", ["a", "b"], at=at, options={"leak": [1.0, 1.0]})  # the sum
    balanced_backward(method, losses(given), given, parameters, {"a": [], "b": []})
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_parameters_that_heads_share_get_the_sum_at_features() -> None:
    late = nn.Linear(5, 5).double()
    net = small_net()

    def losses(features: Tensor) -> dict[str, Tensor]:
        return net.losses(late(features), 0)

    expected = torch.autograd.grad(sum(losses(net.features(0)).values()), list(late.parameters()))  # type: ignore[arg-type]
    features = net.features(0)
    balanced_backward(
        gradient_balancer("mgda", at="features"),
        losses(features),
        [features],
        [*net.encoder.parameters(), *late.parameters()],
        net.own(),
        late=late.parameters(),
    )
    for parameter, gradient in zip(late.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_an_encoder_with_nothing_to_train() -> None:
    net = small_net()
    net.encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing of the encoder is trained"):
        follow(net, gradient_balancer("mgda"), {})


def test_gradients_lie_in_memory_as_their_parameters_do() -> None:
    encoder = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    head = nn.Linear(4, 2)
    features = encoder(torch.randn(2, 3, 6, 6)).mean((2, 3))
    losses = {"a": head(features)[:, 0].square().mean(), "b": head(features)[:, 1].square().mean()}
    own = {"a": head.parameters(), "b": []}
    balanced_backward(gradient_balancer("mgda", ["a", "b"]), losses, [features], encoder.parameters(), own)
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.stride() == encoder.weight.stride() != (27, 9, 3, 1)


def test_half_precision_features_keep_what_the_loss_scale_saves() -> None:
    """Gradients by float16 features of 1e-9, below its least number, and above it at a loss scale of 2^16."""

    def encoders_gradient(dtype: torch.dtype, scale: float) -> Tensor:
        torch.manual_seed(0)
        encoder, head = nn.Linear(6, 5), nn.Linear(5, 2)
        features = encoder(torch.randn(7, 6)).to(dtype)
        outputs = head(features.float())
        losses = {"a": 1e-8 * outputs[:, 0].square().mean(), "b": 1e-8 * outputs[:, 1].square().mean()}
        own = {"a": head.parameters(), "b": []}
        method = gradient_balancer("mgda", ["a", "b"], at="features")
        balanced_backward(method, losses, [features], encoder.parameters(), own, scale=scale)
        return flat([p.grad for p in encoder.parameters()]) / scale

    expected = encoders_gradient(torch.float32, 1.0)
    half = encoders_gradient(torch.float16, 2.0**16)
    assert (
        float((half - expected).norm() / expected.norm()) < 0.02
    )  # float16 has three digits, fewer near its least


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtl_g"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_deep_encoder_is_waited_for_no_more_often_than_a_shallow_one(name: str, scale: float) -> None:
    """Each value that the host reads waits for a GPU: not one for each parameter of the encoder."""

    def reads(depth: int) -> int:
        torch.manual_seed(0)
        encoder = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(6, 6), nn.Tanh())))
        heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})
        features = encoder(torch.randn(8, 6))
        losses = {task: head(features).square().mean() for task, head in heads.items()}
        own = {task: list(head.parameters()) for task, head in heads.items()}
        with HostReads() as counted:
            balanced_backward(
                gradient_balancer(name), losses, [features], encoder.parameters(), own, scale=scale
            )
        return sum(
            "gradient.py" in place for place in counted.places
        )  # what a method asks of the gramian lies on the CPU

    assert reads(12) == reads(2) > 0
