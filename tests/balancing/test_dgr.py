"""The penalty's gradient is that of a double backward through everything, and reaches the features alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.balancing import DummyGradientNorm
from compactmtl.balancing.dummies import random_head, template_of
from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import ConfigError
from compactmtl.models.deeplab import DeepLabV3Head
from compactmtl.models.features import FeatureMap
from compactmtl.models.heads import FCNHead, LinearHead
from compactmtl.models.mtan import MTANHead, SharedAttention
from compactmtl.tasks.losses import masked_mean

CLASSES = {"a": 3, "b": 4}
Build = Callable[[str], nn.Module]


def vector_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)).double()


def map_encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh()).double()


def linear(task: str) -> nn.Module:
    return LinearHead(5, CLASSES[task], HeadConfig(width=4, dropout=0.5)).double()


def normalized(task: str) -> nn.Module:
    return LinearHead(5, CLASSES[task], HeadConfig(width=4), normalized=True).double()


def dense(task: str) -> nn.Module:
    return FCNHead(6, CLASSES[task], HeadConfig(kind="fcn", width=4)).double()


def deeplab(task: str) -> nn.Module:
    return DeepLabV3Head(6, CLASSES[task], HeadConfig(kind="deeplabv3", width=4), stride=16).double()


def problem(build: Build) -> tuple[nn.Module, dict[str, nn.Module], Tensor, dict[str, Tensor], Any]:
    """Encoder, heads, a batch, its targets, and the size that heads are called with."""
    torch.manual_seed(0)
    heads = {task: build(task) for task in CLASSES}
    if build in (linear, normalized):
        encoder, x, size = vector_encoder(), torch.randn(7, 6, dtype=torch.float64), None
    else:
        encoder, x, size = map_encoder(), torch.randn(2, 3, 4, 6, dtype=torch.float64), (8, 12)
    shape = (len(x), *(size or ()))
    targets = {task: torch.randint(0, count, shape) for task, count in CLASSES.items()}
    return encoder, heads, x, targets, size


def losses(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(tasks, F.cross_entropy)


def gradients(value: Tensor, encoder: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(encoder.parameters()), retain_graph=True))


def by_hand(
    features: Tensor,
    heads: Mapping[str, nn.Module],
    targets: Mapping[str, Tensor],
    size: Any,
    *,
    squared: bool,
) -> Tensor:
    """The penalty as a graph through encoder and dummies, one dummy after another."""
    total = torch.zeros((), dtype=torch.float64)
    for task, head in heads.items():
        for number in range(3):
            dummy = template_of(random_head(head, task, number, 5)).requires_grad_(True)
            loss = F.cross_entropy(dummy(features, size), targets[task])
            slopes = torch.autograd.grad(loss, list(dummy.parameters()), create_graph=True)
            square = torch.stack([slope.square().sum() for slope in slopes]).sum()
            total = total + (square if squared else square.sqrt()) / 3
    return total


@pytest.mark.parametrize("norm", ["squared", "plain"])
@pytest.mark.parametrize("build", [linear, normalized, dense, deeplab])
def test_exact_is_the_double_backward_through_encoder_and_dummies(build: Build, norm: Any) -> None:
    encoder, heads, x, targets, size = problem(build)
    penalty = DummyGradientNorm(heads, losses(heads), seed=5, norm=norm)
    value = penalty(encoder(x), targets, size)
    expected = by_hand(encoder(x), heads, targets, size, squared=norm == "squared")
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    for one, two in zip(gradients(value, encoder), gradients(expected, encoder), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["squared", "plain"])
@pytest.mark.parametrize("build", [linear, dense])
def test_the_finite_difference_errs_in_proportion_to_its_step(build: Build, norm: Any) -> None:
    encoder, heads, x, targets, size = problem(build)

    def gradient(**options: Any) -> Tensor:
        penalty = DummyGradientNorm(heads, losses(heads), seed=5, norm=norm, **options)
        return torch.cat([g.flatten() for g in gradients(penalty(encoder(x), targets, size), encoder)])

    exact = gradient()
    errors = [
        float((gradient(mode="finite_difference", epsilon=epsilon) - exact).norm() / exact.norm())
        for epsilon in (1e-3, 1e-4)
    ]
    assert errors[0] < 0.02
    assert 7 < errors[0] / errors[1] < 13  # of first order: a tenth of the step, a tenth of the error


@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
def test_it_reaches_the_features_and_nothing_else(mode: Any) -> None:
    encoder, heads, x, targets, size = problem(normalized)
    before = {name: value.clone() for head in heads.values() for name, value in head.state_dict().items()}
    penalty = DummyGradientNorm(heads, losses(heads), mode=mode)
    penalty(encoder(x), targets, size).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(parameter.grad is None for head in heads.values() for parameter in head.parameters())
    assert not list(penalty.parameters())
    assert not penalty.state_dict()
    after = {name: value for head in heads.values() for name, value in head.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch norm's statistics too


def test_random_generators_are_left_alone() -> None:
    encoder, heads, x, targets, size = problem(linear)
    features, state = encoder(x), torch.get_rng_state()
    DummyGradientNorm(heads, losses(heads))(features, targets, size).backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
@pytest.mark.parametrize("build", [linear, normalized, dense])
def test_dummies_one_by_one_or_together_are_the_same(build: Build, mode: Any) -> None:
    encoder, heads, x, targets, size = problem(build)
    slopes = []
    for chunk in (1, 2, 3):
        penalty = DummyGradientNorm(heads, losses(heads), chunk=chunk, mode=mode, epsilon=1e-3)
        slopes.append(gradients(penalty(encoder(x), targets, size), encoder))
    for other in slopes[1:]:
        for one, two in zip(slopes[0], other, strict=True):
            # a finite difference divides what float64 rounds by its step
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12 if mode == "exact" else 1e-11)


def test_chunks_keep_no_more_than_one_graph() -> None:
    """What autograd saves for one chunk is freed before the next: three dummies take no more than one."""
    encoder, heads, x, targets, size = problem(dense)
    features = encoder(x).detach().requires_grad_()

    def largest(dummies: int) -> int:
        alive: dict[int, int] = {}
        peak = 0

        class Saved:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal peak
                self.tensor = tensor
                alive[id(self)] = tensor.numel()
                peak = max(peak, sum(alive.values()))

            def __del__(self) -> None:
                alive.pop(id(self), None)

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            DummyGradientNorm(heads, losses(heads), dummies=dummies, chunk=1)(features, targets, size)
        return peak

    assert largest(6) <= 1.1 * largest(1)


def test_a_dummy_depends_on_its_task_number_and_seed_alone() -> None:
    head = linear("a")
    assert_same = torch.equal
    one, again = random_head(head, "a", 1, 0), random_head(head, "a", 1, 0)
    assert all(assert_same(p, q) for p, q in zip(one.parameters(), again.parameters(), strict=True))
    for task, number, seed in (("b", 1, 0), ("a", 2, 0), ("a", 1, 1)):
        other = random_head(head, task, number, seed)
        assert not assert_same(next(one.parameters()), next(other.parameters()))


def test_more_dummies_leave_a_mean() -> None:
    encoder, heads, x, targets, size = problem(linear)
    only = {"a": heads["a"]}
    features = encoder(x)
    values = [
        DummyGradientNorm(only, losses(only), dummies=count)(features, targets, size) for count in (1, 2)
    ]
    single = DummyGradientNorm({"a": heads["a"]}, losses(only), dummies=2, chunk=1)
    assert float(single(features, targets, size).detach()) == pytest.approx(float(values[1].detach()))
    second = 2 * values[1] - values[0]  # what the second dummy alone gives
    assert float(second.detach()) > 0


@pytest.mark.parametrize("initialization", ["xavier_uniform", "kaiming_normal", "orthogonal"])
def test_another_initialization_and_activation(initialization: Any) -> None:
    head = random_head(linear("a"), "a", 0, 0, initialization)
    assert isinstance(head, LinearHead)
    assert not head.last.bias.any()
    if initialization == "orthogonal":
        weight = head.hidden[0][0].weight  # type: ignore[index]
        torch.testing.assert_close(weight @ weight.T, torch.eye(4, dtype=torch.float64))
    template = template_of(head, "tanh")
    assert any(isinstance(module, nn.Tanh) for module in template.modules())
    assert not any(isinstance(module, nn.ReLU) for module in template.modules())


def test_a_batch_that_knows_nothing_of_a_task_costs_nothing() -> None:
    encoder, heads, x, targets, size = problem(linear)
    penalty = DummyGradientNorm(heads, {t: lambda output, _: (output * 0).sum() for t in heads}, norm="plain")
    value = penalty(encoder(x), targets, size)
    assert float(value.detach()) < 1e-100  # the least norm there is
    assert all(not g.any() for g in gradients(value, encoder))


@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
@pytest.mark.parametrize("norm", ["squared", "plain"])
def test_unknown_labels_cost_what_they_would_if_they_were_not_there(mode: Any, norm: Any) -> None:
    """Of heads that see each image alone, as a head without batch norm does."""

    def masked(output: Tensor, target: Tensor) -> Tensor:
        known = target.isfinite()
        return masked_mean((output[:, 0] - target.where(known, 0.0)).square(), known)

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    target[[1, 4]] = torch.nan
    known = target.isfinite()
    dgr = DummyGradientNorm({"a": nn.Linear(5, 1)}, {"a": masked}, mode=mode, norm=norm).double()
    leaf, kept = features.clone().requires_grad_(), features[known].requires_grad_()
    value, expected = dgr(leaf, {"a": target}), dgr(kept, {"a": target[known]})
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    (slope,), (alone,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, kept)
    # a finite difference divides what rounding leaves, 1e-16, by its step, 1e-4
    torch.testing.assert_close(slope[known], alone, rtol=1e-10, atol=1e-10)
    assert not slope[~known].any()


def test_features_of_half_precision_get_a_half_precision_gradient() -> None:
    _, heads, _, targets, size = problem(linear)
    heads = {task: head.float() for task, head in heads.items()}
    features = torch.randn(7, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = DummyGradientNorm(heads, losses(heads))(features, targets, size)
    value.backward()
    assert value.dtype == torch.float32
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    exact = features.detach().float().requires_grad_()
    DummyGradientNorm(heads, losses(heads))(exact, targets, size).backward()
    torch.testing.assert_close(features.grad, exact.grad.bfloat16())  # type: ignore[union-attr]


def test_features_of_each_task_and_maps_from_several_stages() -> None:
    encoder, heads, x, targets, size = problem(dense)
    shared = encoder(x)
    penalty = DummyGradientNorm(heads, losses(heads))
    expected = gradients(penalty(shared, targets, size), encoder)
    for given in ({"a": shared, "b": shared.view_as(shared)}, [shared.mean(1), shared]):
        slopes = gradients(penalty(given, targets, size), encoder)
        for one, two in zip(slopes, expected, strict=True):
            torch.testing.assert_close(one, two)


def test_attention_that_heads_share_is_constant() -> None:
    maps = (FeatureMap(4, 2, "before"), FeatureMap(4, 2), FeatureMap(6, 4, "before"), FeatureMap(6, 4))
    attention = SharedAttention(maps, 1).double().train()
    predictor = FCNHead(6, 3, HeadConfig(kind="fcn", width=4))
    heads = {"a": MTANHead(maps, 1, predictor).double()}
    features = [
        torch.randn(2, m.channels, 16 // m.stride, 16 // m.stride, dtype=torch.float64, requires_grad=True)
        for m in maps
    ]
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    penalty = DummyGradientNorm(heads, losses(heads), attention=attention)
    penalty(features, {"a": torch.randint(0, 3, (2, 16, 16))}, (16, 16)).backward()
    assert all(x.grad is not None and x.grad.any() for x in features)
    assert all(parameter.grad is None for parameter in attention.parameters())
    assert all(torch.equal(before[name], value) for name, value in attention.state_dict().items())


def test_without_gradients_it_is_a_number() -> None:
    encoder, heads, x, targets, size = problem(linear)
    penalty = DummyGradientNorm(heads, losses(heads))
    with torch.no_grad():
        value = penalty(encoder(x), targets, size)
    assert not value.requires_grad
    assert float(value) == pytest.approx(float(penalty(encoder(x), targets, size).detach()))


class OwnLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Branching(nn.Linear):
    """Looks at a value, which torch cannot do for several heads at once."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if bool(y.sum() > 0) else -y


def test_bad_heads() -> None:
    with pytest.raises(ConfigError, match=r"head of task 'a' has a layer itself \(OwnLayer\)"):
        DummyGradientNorm({"a": OwnLayer()}, losses({"a": 0}))
    with pytest.raises(ConfigError, match="heads of a and losses of b"):
        DummyGradientNorm({"a": nn.Linear(5, 3)}, losses({"b": 0}))
    with pytest.raises(ConfigError, match="no head has a ReLU"):
        DummyGradientNorm({"a": nn.Linear(5, 3)}, losses({"a": 0}), activation="tanh")
    with pytest.raises(ConfigError, match="dummies 0"):
        DummyGradientNorm({"a": nn.Linear(5, 3)}, losses({"a": 0}), dummies=0)
    features, targets = torch.randn(4, 5, requires_grad=True), {"a": torch.randint(0, 3, (4,))}
    with pytest.raises(ConfigError, match="evaluated together") as caught:
        DummyGradientNorm({"a": Branching(5, 3)}, losses({"a": 0}))(features, targets)
    assert "chunk to 1" in caught.value.hint
    DummyGradientNorm({"a": Branching(5, 3)}, losses({"a": 0}), chunk=1)(features, targets).backward()


def test_it_moves_and_casts_with_its_module() -> None:
    heads: dict[str, nn.Module] = {"a": nn.Linear(5, 3)}
    features, targets = torch.randn(4, 5).double(), {"a": torch.randint(0, 3, (4,))}
    value: Sequence[Tensor] = [DummyGradientNorm(heads, losses(heads)).double()(features, targets)]
    assert value[0].dtype == torch.float64
