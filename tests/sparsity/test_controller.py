"""The controller finds its λ: it lands on its target, and neither winds up nor lets everything die."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from compactmtl.config.sparsity import ControllerConfig, StrengthScheduleConfig
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.overparam import overparameterize
from compactmtl.sparsity import (
    ChannelGroups,
    Control,
    GroupLasso,
    GroupMCP,
    Penalty,
    SparseGroupLasso,
    StrengthController,
    StrengthSchedule,
    channel_groups,
    split_parameter_groups,
    zero_share,
)

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three convolutions with norms, one of them beside a shortcut, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.outer(self.inner(x))).relu()
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Training:
    """A model under a control, stepped by hand."""

    def __init__(
        self,
        control: Callable[[ChannelGroups], Control],
        *,
        sgd: bool = False,
        kind: str = "coupled",
        prepare: Callable[[Net], nn.Module] = lambda net: net,
    ) -> None:
        torch.manual_seed(0)
        self.model = prepare(Net())
        self.groups = channel_groups(self.model, IMAGE, kind=kind, block=4)  # type: ignore[arg-type]
        self.control = control(self.groups)
        parameters = split_parameter_groups(self.model, self.control.shrunk, 0.01)
        self.optimizer: Optimizer = (
            SGD(parameters, lr=0.05, momentum=0.9) if sgd else AdamW(parameters, lr=0.01)
        )
        self.control.attach(self.optimizer)
        self.done = 0

    def run(self, steps: int, each: Callable[[], None] = lambda: None) -> Training:
        for _ in range(steps):
            x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(self.done))
            self.optimizer.zero_grad()
            (self.model(x) - x[:, :1, :4].mean((2, 3)) * 4).square().mean().backward()
            self.control.observe()
            self.optimizer.step()
            self.control.step()
            self.done += 1
            each()
        return self


PENALTIES: dict[str, Callable[[ChannelGroups], Penalty]] = {
    "group_lasso": lambda groups: GroupLasso(groups, 0.0),
    "sparse_group_lasso": lambda groups: SparseGroupLasso(groups, 0.0, l1=0.5, l2=1.0),
    "group_mcp": lambda groups: GroupMCP(groups, 0.0, knee=1.0),
}


def controlled(
    reduction: float, penalty: str = "group_lasso", steps: int = 100, **options: Any
) -> Callable[[ChannelGroups], StrengthController]:
    config = ControllerConfig(**{"mac_reduction": reduction, "every": 5, "min_channels": 2, **options})
    return lambda groups: StrengthController(PENALTIES[penalty](groups), config, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reduction", "sgd", "penalty", "kind"),
    [
        (0.3, False, "group_lasso", "coupled"),
        (0.5, True, "group_lasso", "coupled"),
        (0.7, False, "sparse_group_lasso", "coupled"),
        (0.7, True, "group_mcp", "coupled"),
        (0.9, False, "group_lasso", "coupled"),
        (0.5, False, "group_lasso", "block"),
        (0.5, False, "group_lasso", "filter"),
        (0.3, False, "group_lasso", "input_channel"),
    ],
)
def test_it_lands_on_the_target_and_holds_it(reduction: float, sgd: bool, penalty: str, kind: str) -> None:
    training = Training(controlled(reduction, penalty), sgd=sgd, kind=kind)
    control = training.control
    assert isinstance(control, StrengthController)
    path: list[float] = []
    training.run(50, lambda: path.append(control.removed()))
    macs = training.groups.cost("macs")
    removed = 1 - macs(training.groups.alive()) / macs(training.groups.whole())
    assert removed == pytest.approx(control.removed())
    # one group more at most: a channel of the stem takes 5 % of this small network, a block of four 20 %
    assert reduction <= removed <= reduction + (0.06 if kind != "block" else 0.25)
    assert control.reached
    assert control.strength == 0
    share = zero_share(training.groups)
    before = training.model.get_parameter("head.weight").detach().clone()
    training.run(10)
    assert zero_share(training.groups) == share
    assert not torch.equal(before, training.model.get_parameter("head.weight"))
    assert all(int(family.zeros().sum()) <= family.size - 1 for family in training.groups.bound)


@pytest.mark.slow
def test_most_die_before_the_end_and_the_strength_stays_in_bounds() -> None:
    training = Training(controlled(0.6, steps=200))
    control = training.control
    assert isinstance(control, StrengthController)
    strengths: list[float] = []
    training.run(99, lambda: strengths.append(control.strength))
    zero = zero_share(training.groups)
    training.run(1)
    assert control.forced <= 0.3
    assert zero >= 0.5 * zero_share(training.groups)
    set_once = [value for value in strengths if value > 0]
    # nothing winds up: λ stays within a decade of the first that was set, but for the last few settings
    assert max(set_once[:60]) <= 10 * set_once[0]


@pytest.mark.slow
def test_it_works_on_factorized_layers() -> None:
    training = Training(controlled(0.5), prepare=overparameterize).run(60)
    control = training.control
    assert isinstance(control, StrengthController)
    assert 0.5 <= control.removed() <= 0.56


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["parameter_reduction", "mac_reduction"])
def test_other_measures(measure: str) -> None:
    config = ControllerConfig(**{measure: 0.5, "every": 5, "min_channels": 2})
    training = Training(lambda groups: StrengthController(GroupLasso(groups, 0.0), config, 100)).run(50)
    count = training.groups.cost(config.measure)
    removed = 1 - count(training.groups.alive()) / count(training.groups.whole())
    assert 0.5 <= removed <= 0.56


@pytest.mark.slow
def test_resuming_is_bit_equal() -> None:
    whole = Training(controlled(0.6)).run(23)
    saved = copy.deepcopy(
        (whole.model.state_dict(), whole.optimizer.state_dict(), whole.control.state_dict())
    )
    whole.run(37)
    resumed = Training(controlled(0.6))
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.control.load_state_dict(saved[2])
    resumed.done = 23
    resumed.run(37)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_most_that_can_go_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"controller\.mac_reduction 0\.9 cannot be reached: 0\.\d+ is the most"
    ):
        Training(controlled(0.9, min_channels=12))


def test_no_step_between_warmup_and_end() -> None:
    config = ControllerConfig(mac_reduction=0.5, end=0.05)
    with pytest.raises(ConfigError, match="leave no step"):
        Training(lambda groups: StrengthController(GroupLasso(groups, 0.0), config, 100, warmup=0.1))


def test_a_state_of_other_groups() -> None:
    training = Training(controlled(0.5)).run(10)
    state = training.control.state_dict()
    state["exempt"] = state["exempt"][1:]
    with pytest.raises(ArtifactError, match="other channel groups"):
        training.control.load_state_dict(state)


def test_a_state_of_an_earlier_version() -> None:
    training = Training(controlled(0.5))
    earlier = training.control.state_dict()
    earlier["spared"] = [torch.ones_like(flags) for flags in earlier.pop("exempt")]
    training.control.load_state_dict(earlier)
    assert all(bool(flags.all()) for flags in training.control.state_dict()["exempt"])


def scheduled(strength: float = 2.0, **options: Any) -> Callable[[ChannelGroups], StrengthSchedule]:
    schedule = StrengthScheduleConfig(**options) if options else None
    return lambda groups: StrengthSchedule(GroupLasso(groups, strength), 100, 0.1, schedule)


def test_a_constant_strength_begins_after_its_warmup() -> None:
    control = scheduled()(channel_groups(Net(), IMAGE))
    assert [control.at(step) for step in (1, 10, 11, 100)] == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 1.0), ("cosine", 1.0), ("exponential", 2 * 1000**-0.5)]
)
def test_a_schedule_rises_and_lets_go(shape: str, middle: float) -> None:
    control = scheduled(shape=shape, full=0.5, release=0.8)(channel_groups(Net(), IMAGE))
    assert control.at(10) == 0.0
    assert control.at(30) == pytest.approx(middle)
    assert control.at(50) == control.at(80) == 2.0
    assert control.at(81) == 0.0
    path = [control.at(step) for step in range(11, 51)]
    assert path == sorted(path)


@pytest.mark.slow
def test_after_the_release_zeros_are_held_and_the_rest_recovers() -> None:
    training = Training(scheduled(0.006, full=0.2, release=0.5), sgd=True).run(50)
    share = zero_share(training.groups)
    assert 0.1 < share < 1
    assert training.control.reached
    assert training.control.held is not None
    norms = [family.norms().detach() for family in training.groups.bound]
    training.run(30)
    assert zero_share(training.groups) == share
    after = [family.norms().detach() for family in training.groups.bound]
    assert sum(float(n.sum()) for n in after) > sum(float(n.sum()) for n in norms)


def test_costly_layers_have_more_of_the_strength() -> None:
    groups = channel_groups(Net(), IMAGE)
    penalty = GroupLasso(groups, 1.0)
    StrengthController(penalty, ControllerConfig(mac_reduction=0.3, min_channels=2), 100)
    # the stream's channel: 9·3 to write it, 9·24 each to read and to write it again, and 1/64 for the head
    costs = [64 * 9 * (3 + 24 + 24) + 1, 64 * 9 * (16 + 16)]
    assert penalty.factors[0] / penalty.factors[1] == pytest.approx(costs[0] / costs[1])
    assert sum(
        f * len(g.zeros()) for f, g in zip(penalty.factors, groups.bound, strict=True)
    ) == pytest.approx(40)
    plain = GroupLasso(groups, 1.0)
    assert float(penalty.value().detach()) != pytest.approx(float(plain.value().detach()))
    StrengthController(plain, ControllerConfig(mac_reduction=0.3, min_channels=2, weights="size"), 100)
    assert plain.factors == [1.0, 1.0]
