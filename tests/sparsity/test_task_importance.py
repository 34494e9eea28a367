"""Each task's importance of a channel is what its own gradient says, and is kept of channels that went."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compactmtl.config.sparsity import ControllerConfig
from compactmtl.errors import ArtifactError, ConfigError, TrainingError
from compactmtl.sparsity import GroupLasso, StrengthController, channel_groups
from compactmtl.sparsity.record import importance_record
from compactmtl.sparsity.target import as_flags
from compactmtl.sparsity.task_importance import MEMORY, TaskImportance
from tests.sparsity.two_tasks import IMAGE, TASKS, Net, Stepped, Training, losses_of


def in_float64(*, squared: bool = False) -> tuple[Net, TaskImportance]:
    torch.manual_seed(0)
    model = Net().double()
    groups = channel_groups(model, IMAGE.double())
    scored = [family.scored for family in groups.bound]
    return model, TaskImportance(scored, [family.size for family in groups], 1, squared=squared)


def by_hand(model: Net, task: str, seed: int) -> list[Tensor]:
    """|γ·∂L/∂γ + β·∂L/∂β| of the first norm, from a graph of its own."""
    fresh = copy.deepcopy(model)
    fresh.zero_grad()
    losses_of(fresh, seed, torch.float64)[task].backward()  # type: ignore[no-untyped-call]
    norm = fresh.encoder[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.weight.grad is not None and norm.bias.grad is not None
    return [(norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach().abs()]


@pytest.mark.parametrize("squared", [False, True])
def test_it_is_what_each_tasks_own_gradient_says(squared: bool) -> None:
    model, importance = in_float64(squared=squared)
    expected: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    for seed in range(3):
        importance.look(seed, losses_of(model, seed, torch.float64))
        for task in TASKS:
            expected[task] += by_hand(model, task, seed)
    weights = torch.tensor([MEMORY**2, MEMORY, 1.0], dtype=torch.float64)
    weights = weights / weights.sum()
    found = importance.importance()[0]
    for row, task in enumerate(TASKS):
        values = torch.stack(expected[task])
        mean = (weights[:, None] * (values.square() if squared else values)).sum(0)
        torch.testing.assert_close(found[row], mean.sqrt() if squared else mean, rtol=1e-10, atol=0)


def test_a_look_leaves_gradients_weights_and_graph_alone() -> None:
    model, importance = in_float64()
    plain = copy.deepcopy(model)
    losses = losses_of(model, 0, torch.float64)
    importance.look(0, losses)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    torch.stack(list(losses_of(plain, 0, torch.float64).values())).sum().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_shares_are_of_all_groups_together_and_scale_is_divided_out() -> None:
    model, importance = in_float64()
    importance.look(0, losses_of(model, 0, torch.float64), scale=1024.0)
    for row in range(len(TASKS)):
        total = sum(float(share[row].sum()) for share in importance.shares())
        assert total == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(
        importance.importance()[0][0], by_hand(model, TASKS[0], 0)[0], rtol=1e-10, atol=0
    )


def test_a_task_of_which_a_batch_knows_nothing_keeps_its_mean() -> None:
    model, importance = in_float64()
    importance.look(0, losses_of(model, 0, torch.float64))
    before = [value.clone() for value in importance.importance()]
    losses = losses_of(model, 1, torch.float64)
    importance.look(1, {"near": losses["near"], "far": losses["far"] * 0})
    after = importance.importance()
    assert all(torch.equal(one[1], other[1]) for one, other in zip(before, after, strict=True))
    assert not torch.equal(before[0][0], after[0][0])
    importance.look(
        2, {"near": losses_of(model, 2, torch.float64)["near"] * float("nan"), "far": losses["far"] * 0}
    )
    assert all(bool(torch.isfinite(value).all()) for value in importance.importance())


def test_the_interval_follows_the_number_of_tasks() -> None:
    _, importance = in_float64()
    assert importance.due(5, 2) and not importance.due(5, 1)  # one task alone has nobody to be told from
    for steps, every in ((100, 21), (3000, 30), (9000, 60)):
        by_default = TaskImportance([], [], None, steps=steps)
        assert [step for step in range(130) if by_default.due(step, 3)] == list(range(0, 130, every))
    assert not any(TaskImportance([], [], 0).due(step, 3) for step in range(3))


def test_one_step_is_looked_at_once() -> None:
    model, importance = in_float64()
    importance.look(4, losses_of(model, 0, torch.float64))
    assert not importance.due(4, 2) and importance.due(5, 2)


def test_other_tasks_than_before_are_refused() -> None:
    model, importance = in_float64()
    losses = losses_of(model, 0, torch.float64)
    importance.look(0, losses)
    with pytest.raises(TrainingError, match="losses of near were given, and of near, far before"):
        importance.look(1, {"near": losses["near"]})


def test_what_a_task_without_room_needs_counts_up_to_ten_times() -> None:
    model, importance = in_float64()
    importance.look(0, losses_of(model, 0, torch.float64))
    near, far = importance.shares()[1].numpy()
    assert importance.tilt({})[1] == pytest.approx([1.0] * len(near), rel=1e-12)
    tight = importance.tilt({"near": 0.0})[1]
    assert tight == pytest.approx((10 * near + far) / (near + far), rel=1e-12)
    half = importance.tilt({"near": 1.0, "far": 0.5})[1]
    assert half == pytest.approx((near + 2 * far) / (near + far), rel=1e-12)


def test_a_group_that_nobody_was_seen_to_need_counts_as_everybodys() -> None:
    model, importance = in_float64()
    norm = model.encoder[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[3] = norm.bias[3] = 0.0
    importance.look(0, losses_of(model, 0, torch.float64))
    assert importance.tilt({"near": 0.0})[0][3] == pytest.approx(5.5)


def test_what_went_keeps_the_share_that_it_had_when_it_was_chosen() -> None:
    model, importance = in_float64()
    importance.look(0, losses_of(model, 0, torch.float64))
    share = importance.shares()[0].clone()
    fresh = [torch.zeros(one.shape[1], dtype=torch.bool) for one in importance.shares()]
    fresh[0][2] = fresh[0][5] = True
    importance.chosen(fresh)
    left = [torch.arange(one.shape[1]) for one in importance.shares()]
    left[0] = torch.tensor(
        [index for index in range(12) if index != 2]
    )  # channel 2 leaves the network, 5 stays at zero
    importance.shrink_to(importance._scored, left)
    importance._running[0][:] = 0
    dead = [torch.zeros(len(index), dtype=torch.bool) for index in left]
    dead[0][4] = True  # the former 5
    gone, values = importance.whole(dead)[0]
    assert gone.nonzero()[0].tolist() == [2, 5]
    assert values[:, 2].tolist() == share[:, 2].tolist() and values[:, 5].tolist() == share[:, 5].tolist()
    assert (values[:, [0, 1, 3, 4]] == 0).all()


def test_its_state_goes_on_where_it_was() -> None:
    model, importance = in_float64()
    importance.look(0, losses_of(model, 0, torch.float64))
    _, other = in_float64()
    other.bind(importance._scored)
    other.load_state_dict(importance.state_dict())
    for one in (importance, other):
        one.look(1, losses_of(model, 1, torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(importance.shares(), other.shares(), strict=True))
    state = importance.state_dict()
    state["running"] = state["running"][:1]
    with pytest.raises(ArtifactError, match="of other channel groups"):
        other.load_state_dict(state)


def test_a_bound_on_an_unknown_task_is_named() -> None:
    training = Training(losses={"nearr": 0.1})
    with pytest.raises(ConfigError, match="names 'nearr', which is no task") as raised:
        training.run(1)
    assert "near" in str(raised.value.hint)


class Controlled(Stepped):
    """Under a λ that finds itself."""

    control: StrengthController

    def __init__(self) -> None:
        config = ControllerConfig(mac_reduction=0.5, min_channels=2, every=5, end=0.8, tasks_every=3)
        super().__init__(
            lambda groups: StrengthController(GroupLasso(groups, strength=0.0), config, 60), decay=0.0
        )


@pytest.mark.slow  # trains, seconds
def test_under_a_strength_that_finds_itself_what_goes_is_noted_too() -> None:
    controlled = Controlled().run(50)
    control = controlled.control
    assert control.held is not None
    record = importance_record(control.tasks, ["a", "b", "c"], as_flags(control.held), None)
    removed = [(layer, channel) for layer in record["layers"] for channel in layer["removed"]]
    assert removed and record["looks"] == 17
    # what was selected while it was alive was worth something to a task
    assert any(layer["shares"][task][channel] > 0 for layer, channel in removed for task in TASKS)


@pytest.mark.slow  # trains, seconds
def test_its_state_goes_with_the_controllers() -> None:
    whole, first, second = Controlled().run(50), Controlled().run(30), Controlled()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.control.load_state_dict(copy.deepcopy(first.control.state_dict()))
    second.done = first.done
    second.run(20)
    for name, state in whole.control.tasks.state_dict().items():
        again = second.control.tasks.state_dict()[name]
        if name == "seconds":
            continue
        if isinstance(state, list) and isinstance(state[0], Tensor):
            assert all(torch.equal(one, other) for one, other in zip(state, again, strict=True))
        elif isinstance(state, Tensor):
            assert torch.equal(state, again)
        else:
            assert state == again
