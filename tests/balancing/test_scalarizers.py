"""Every method of losses follows Σ factor · task gradient, with the factors of its paper's formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compactmtl.balancing import balancer
from compactmtl.errors import TrainingError
from tests.support.small_net import TASKS, small_net

THIRD = 1 / 3


def softmax(values: Tensor) -> Tensor:
    return torch.div(values.exp(), values.exp().sum())


def drawn(losses: Tensor) -> Tensor:
    torch.manual_seed(0)
    return softmax(torch.randn(3, dtype=losses.dtype))


def cosmos(losses: Tensor) -> Tensor:
    """d/dL of r·L − cos(r, L), r = 1/3 each."""
    r = torch.full_like(losses, THIRD)
    cosine = r @ losses / (r.norm() * losses.norm())
    slope: Tensor = r / (r.norm() * losses.norm()) - cosine * losses / losses.norm() ** 2
    return r - slope


def pbi(losses: Tensor) -> Tensor:
    """d/dL of d1 + 5 d2, along and away from the diagonal."""
    along = torch.full_like(losses, 1 / math.sqrt(3))
    away = losses - (losses @ along) * along
    slope: Tensor = along + 5 * away / away.norm()
    return slope


FACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "equal": torch.ones_like,
    "uncertainty": torch.ones_like,  # s starts at 0, and no kind halves its loss
    "imtl_l": torch.ones_like,  # e^s at s = 0
    "dwa": torch.ones_like,  # in the first two epochs
    "famo": lambda losses: (THIRD / losses) / (THIRD / losses).sum(),
    "stch": lambda losses: softmax(losses / 3) / 3,
    "geometric_mean": lambda losses: losses.log().mean().exp() * THIRD / losses,
    "random": drawn,
    "cosmos": cosmos,
    "pbi": pbi,
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_encoder_follows_the_formulas_factors(name: str) -> None:
    net, method = small_net(), balancer(name, TASKS).double()
    losses = torch.stack([loss.detach() for loss in net.losses(net.features(0), 0).values()])
    factors = FACTORS[name](losses)
    torch.manual_seed(0)
    net.follow(method)
    # famo adds 1e-8 to each loss; preferences of one third are in float32
    torch.testing.assert_close(net.gradient(), factors @ net.jacobian(), rtol=1e-6, atol=1e-6)
    if name != "famo":  # whose log has the weights before they are normalized
        assert method.log() == pytest.approx(dict(zip(TASKS, factors.tolist(), strict=True)), rel=1e-6)


def test_dwa_weighs_by_the_last_two_epochs() -> None:
    method = balancer("dwa", ["a", "b"])
    for losses in ([1.0, 4.0], [0.5, 4.0]):  # one batch an epoch
        method.combine({"a": torch.tensor(losses[0]), "b": torch.tensor(losses[1])})
        method.end_epoch()
    restored = balancer("dwa", ["a", "b"])
    restored.load_state_dict(method.state_dict())
    expected = 2 * softmax(torch.tensor([0.5, 1.0]) / 2)  # rates of descent over the temperature
    for one in (method, restored):
        total = one.combine({"a": torch.tensor(3.0), "b": torch.tensor(7.0)})
        assert float(total) == pytest.approx(float(expected @ torch.tensor([3.0, 7.0])), rel=1e-6)


def test_famo_turns_to_the_task_that_fell_less_and_remembers() -> None:
    method, losses = balancer("famo", ["a", "b"]), {"a": torch.tensor(2.0), "b": torch.tensor(2.0)}
    for _ in range(3):
        method.combine(losses)
        method.after_step({"a": torch.tensor(1.0), "b": torch.tensor(1.9)})
    weights = method.log()
    assert weights["b"] > weights["a"]
    assert sum(weights.values()) == pytest.approx(1)
    assert not list(method.parameters())  # no other optimizer moves them
    restored = balancer("famo", ["a", "b"])
    restored.load_state_dict(method.state_dict())
    for one in (method, restored):
        one.combine(losses)
        one.after_step({"a": torch.tensor(1.0), "b": torch.tensor(1.9)})
    assert method.log() == restored.log()


def test_famo_compares_with_the_losses_that_its_state_remembers() -> None:
    """As where a pass at other weights comes between a step's two looks, and the state is put back."""
    plain, disturbed = balancer("famo", ["a", "b"]), balancer("famo", ["a", "b"])
    for method in (plain, disturbed):
        method.combine({"a": torch.tensor(2.0), "b": torch.tensor(2.0)})
    state = copy.deepcopy(disturbed.state_dict())
    disturbed.combine({"a": torch.tensor(9.0), "b": torch.tensor(2.0)})
    disturbed.load_state_dict(state)
    for method in (plain, disturbed):
        method.after_step({"a": torch.tensor(1.9), "b": torch.tensor(1.0)})
    assert plain.log() == disturbed.log()
    assert plain.log()["a"] > plain.log()["b"]


@pytest.mark.parametrize("name", ["famo", "geometric_mean", "db_mtl"])
def test_a_loss_without_a_logarithm_names_its_task(name: str) -> None:
    net, method = small_net(), balancer(name, TASKS)
    net.scales = (1.0, -1.0, 1.0)
    with pytest.raises(TrainingError, match="logarithm of each loss, and that of task 'b'"):
        net.follow(method)


@pytest.mark.parametrize("name", ["famo", "geometric_mean"])
def test_a_loss_of_zero_names_the_labels_that_the_batch_lacks(name: str) -> None:
    net, method = small_net(), balancer(name, TASKS)
    net.scales = (1.0, 0.0, 1.0)
    with pytest.raises(TrainingError, match="no image of the batch has a known label") as error:
        net.follow(method)
    assert "'b'" in error.value.message
    assert "data.batch_size" in error.value.hint
    assert "another loss" not in error.value.hint


def test_famo_names_a_least_loss_that_is_too_high() -> None:
    method = balancer("famo", ["a", "b"], options={"least": [0.0, 0.5]})
    with pytest.raises(
        TrainingError, match=r"that of task 'b' is 0\.25, and its balancing\.options\.least is 0\.5"
    ):
        method.combine({"a": torch.tensor(1.0), "b": torch.tensor(0.25)})


def test_learned_scales_are_parameters_and_state() -> None:
    method = balancer("imtl_l", TASKS)
    assert [parameter.shape for parameter in method.parameters()] == [(3,)]
    with torch.no_grad():
        next(method.parameters()).fill_(math.log(2))
    restored = balancer("imtl_l", TASKS)
    restored.load_state_dict(method.state_dict())
    total = restored.combine({task: torch.tensor(1.0) for task in TASKS})
    assert float(total.detach()) == pytest.approx(3 * (2 - math.log(2)))
