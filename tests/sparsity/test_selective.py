"""Selective shrinking meets its target exactly, holds it, and resumes bit-equal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from compactmtl.config.recipe import SelectiveConfig
from compactmtl.errors import ArtifactError, ConfigError, TrainingError
from compactmtl.overparam import overparameterize
from compactmtl.sparsity import SelectiveShrinking, channel_groups, split_parameter_groups, zero_share
from compactmtl.sparsity.selective import Ramp, Timetable
from compactmtl.sparsity.target import Target
from tests.sparsity.two_tasks import encoder_of

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """An encoder and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder_of(16, 24, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder(x))
        return output


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :1, :4].mean((2, 3)) * 4


class Training:
    """A model under selective shrinking, stepped by hand."""

    def __init__(
        self,
        reduction: float = 0.6,
        steps: int = 60,
        align: int = 1,
        prepare: Callable[[Net], nn.Module] = lambda net: net,
        sgd: bool = False,
        **config: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = prepare(Net())
        self.groups = channel_groups(self.model, IMAGE)
        options = {
            "mac_reduction": reduction,
            "start": 0.2,
            "end": 0.8,
            "every": 5,
            "min_channels": 2,
            **config,
        }
        self.control = SelectiveShrinking(self.groups, SelectiveConfig(**options), steps, align=align)
        parameters = split_parameter_groups(self.model, self.control.shrunk, 0.01)
        self.optimizer: Optimizer = (
            SGD(parameters, lr=0.05, momentum=0.9) if sgd else AdamW(parameters, lr=0.01)
        )
        self.control.attach(self.optimizer)
        self.done = 0

    def run(self, steps: int, each: Callable[[], None] = lambda: None) -> Training:
        for _ in range(steps):
            x, y = batch(self.done)
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            self.control.observe()
            self.optimizer.step()
            self.control.step()
            self.done += 1
            each()
        return self


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "sgd"), [(0.05, False), (0.3, True), (0.6, False), (0.9, True)])
def test_the_target_is_met_at_the_end_and_not_overshot(reduction: float, sgd: bool) -> None:
    training = Training(reduction, sgd=sgd).run(48)
    assert training.control.reached
    removed = training.control.removed()
    assert reduction <= removed
    # One channel of the widest layer more, at most: 24·9·16·(1/4) + 16·9·24·(1/4) of the MACs.
    assert removed <= reduction + 0.1
    assert len(training.control.state_dict()["dead"]) == len(training.groups)


def test_before_the_start_nothing_is_touched() -> None:
    training = Training().run(11)
    assert zero_share(training.groups) == 0
    assert training.control.removed() == 0


@pytest.mark.slow
def test_it_rises_with_the_schedule_and_never_above_it() -> None:
    training = Training(steps=60, threshold=0.1)
    path: list[float] = []
    training.run(60, each=lambda: path.append(training.control.removed()))
    assert path == sorted(path)
    assert path[10] == 0
    assert path[47] >= 0.6
    assert len(set(path)) > 5, "channels go a few at a time"
    assert len(set(path[47:])) == 1


def test_dead_groups_are_exactly_zero_in_all_members_and_stay_so() -> None:
    training = Training().run(48)
    share = zero_share(training.groups)
    assert share > 0.2
    dead = sum(int(d.sum()) for d in training.control.state_dict()["dead"])
    assert share == dead / training.groups.total
    training.run(20)
    assert zero_share(training.groups) == share


@pytest.mark.slow
def test_survivors_are_not_shrunk_and_train_on() -> None:
    training = Training(steps=20).run(16)
    before = [p.detach().clone() for p in training.model.parameters()]
    training.run(1)
    assert any(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
    free = Training(steps=100, start=0.5).run(10)
    plain = Training(steps=100, start=0.5)
    plain.control.step = lambda: None  # type: ignore[method-assign]
    plain.run(10)
    for a, b in zip(free.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_least_channels_and_alignment_hold() -> None:
    training = Training(0.5, align=4, min_channels=5, steps=30).run(24)
    kept = [
        family.size - int(d.sum())
        for family, d in zip(training.groups, training.control.state_dict()["dead"], strict=True)
    ]
    assert all(count >= 8 and count % 4 == 0 for count in kept)
    assert training.control.removed() >= 0.5
    assert len(kept) == 3


@pytest.mark.slow
def test_a_least_share_of_each_layer_stays() -> None:
    training = Training(0.5, min_share=0.5, steps=30).run(24)
    for family, dead in zip(training.groups, training.control.state_dict()["dead"], strict=True):
        assert int(dead.sum()) <= family.size / 2
    with pytest.raises(ConfigError, match=r"min_share 0\.9"):
        Training(0.5, min_share=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("cost_of", ["left", "whole"])
def test_what_a_channel_costs_follows_the_network_that_is_left_or_stays(
    cost_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []
    choose = Target.choose

    def noted(self: Target, importance: Any, dead: Any, costs: list[float], share: float = 1.0) -> Any:
        asked.append(costs)
        return choose(self, importance, dead, costs, share)

    monkeypatch.setattr(Target, "choose", noted)
    Training(cost_of=cost_of).run(60)
    # of the whole network: the three layers' own MACs a channel, and those of their readers
    whole = [8 * 8 * 27 + 4 * 4 * 9 * 24, 4 * 4 * 9 * 16 + 4 * 4 * 9 * 16, 4 * 4 * 9 * 24 + 1]
    assert sorted(asked[0]) == pytest.approx(sorted(whole))
    assert (asked[-1] == asked[0]) is (cost_of == "whole")


def test_the_same_on_factorized_layers() -> None:
    training = Training(prepare=overparameterize, steps=30).run(24)
    assert training.control.removed() >= 0.6
    assert zero_share(training.groups) > 0.2


def test_a_channel_that_nothing_reads_counts_least() -> None:
    training = Training()
    following = training.model.get_submodule("encoder.3")
    assert isinstance(following, nn.Conv2d)
    with torch.no_grad():
        following.weight[:, 4:] *= 1e-4
    importance = training.run(8).control.state_dict()["importance"][0]
    # Eight steps at rate 0.01 leave the readers of the first four ahead of those that start at nothing.
    assert importance[:4].min() > importance[4:].median()
    assert importance[:4].mean() > 2 * importance[4:].mean()


@pytest.mark.slow
def test_resuming_is_bit_equal() -> None:
    whole = Training().run(20)
    parts = whole.model.state_dict(), whole.optimizer.state_dict(), whole.control.state_dict()
    saved = copy.deepcopy(parts)
    whole.run(30)
    resumed = Training()
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.control.load_state_dict(saved[2])
    resumed.done = 20
    resumed.run(30)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_state_is_plain_tensors_and_numbers(tmp_path: Any) -> None:
    state = Training().run(15).control.state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == state.keys()


def test_moments_of_the_dead_are_cleared() -> None:
    training = Training(sgd=True, steps=30).run(26)
    bound = training.groups.bound[0]
    dead = training.control.state_dict()["dead"][0]
    assert dead.any()
    for s in bound.tensors:
        if s.role == "producer":  # an affine's own gradient goes on after its death
            buffer = training.optimizer.state[s.parameter]["momentum_buffer"]
            assert buffer[dead].abs().max() == 0


def test_a_gradient_that_is_not_finite_leaves_the_importance_as_it_was() -> None:
    training = Training().run(5)
    before = training.control.state_dict()["importance"]
    for parameter in training.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    training.control.observe()
    after = training.control.state_dict()["importance"]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_most_that_can_go_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot be reached: 0\.\d+ is the most with sparsity\.selective\.min_channels 12"
    ):
        Training(0.9, min_channels=12)


def test_the_most_that_is_said_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="channels in multiples of 8") as caught:
        Training(0.99, align=8)
    most = float(str(caught.value).split("reached: ")[1].split()[0])
    Training(most, align=8)
    with pytest.raises(ConfigError, match="cannot be reached"):
        Training(most + 0.001, align=8)


def test_groups_without_a_mac_model() -> None:
    groups = channel_groups(Net(), IMAGE, kind="input_channel")
    with pytest.raises(ConfigError, match="MACs"):
        SelectiveShrinking(groups, SelectiveConfig(mac_reduction=0.5), 100)


def test_no_step_between_start_and_end() -> None:
    with pytest.raises(ConfigError, match="leave no step"):
        Training(start=0.5, end=0.5)


def test_missing_gradients() -> None:
    with pytest.raises(TrainingError, match="no gradient"):
        Training().control.observe()


def test_a_state_of_other_groups() -> None:
    training = Training()
    state = training.control.state_dict()
    state["dead"] = state["dead"][1:]
    with pytest.raises(ArtifactError, match="other channel groups"):
        training.control.load_state_dict(state)


@pytest.mark.parametrize("ramp", ["cubic", "linear", "cosine", "geometric"])
def test_every_ramp_rises_from_nothing_to_all(ramp: Ramp) -> None:
    time = Timetable(10, 90, 100, ramp, reduction=0.75)
    due = [time.share(step) for step in range(1, 101)]
    assert due[:10] == [0] * 10 and due[89:] == [1] * 11
    assert due == sorted(due) and len(set(due[9:90])) == 81


def test_the_gentle_ramps_take_less_at_first() -> None:
    early = {
        ramp: Timetable(0, 90, 100, ramp, reduction=0.9).share(9)
        for ramp in ("cubic", "geometric", "linear", "cosine")
    }
    assert list(early) == sorted(early, key=early.__getitem__, reverse=True)


def test_a_geometric_ramp_removes_an_equal_share_of_what_is_left() -> None:
    time = Timetable(0, 40, 50, "geometric", reduction=0.84)
    left = [1 - 0.84 * time.share(step) for step in range(41)]
    assert all(after / before == pytest.approx(0.16 ** (1 / 40)) for before, after in pairwise(left))


def test_importance_is_averaged_over_the_steps_asked_for() -> None:
    """Of two groups, the one with the larger mean stays more important although its last step was the smaller one."""
    short, long = Training(importance_steps=1), Training(importance_steps=50)
    for training in (short, long):
        scale = training.model.encoder[1].weight  # type: ignore[index, union-attr]
        for step in range(10):
            for parameter in training.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            assert scale.grad is not None
            scale.grad[0], scale.grad[1] = (10.0, 1.0) if step < 9 else (0.0, 1.0)
            training.control.observe()
    family = next(i for i, f in enumerate(short.groups) if f.size == 16)
    values = [training.control.state_dict()["importance"][family] for training in (short, long)]
    assert values[0][0] < values[0][1]
    assert values[1][0] > values[1][1]


def test_the_defaults_average_as_before() -> None:
    """Old recipes give the same numbers: 20 steps are exactly the factor 0.95."""
    assert 1 - 1 / SelectiveConfig(mac_reduction=0.5).importance_steps == 0.95
    assert SelectiveConfig(mac_reduction=0.5).ramp == "cubic"
