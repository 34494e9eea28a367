"""Bounds on what tasks may lose in a loop of one's own: measured by a function, or told; wrong uses are named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import CompactWarning, ConfigError, TrainingError
from compactmtl.loops import Shrinking
from compactmtl.loops.held_out import Told, as_held_out, check_looked
from tests.loops.nets import EPOCHS, STEPS, adam, backward, batches, example, two_heads

SETTINGS: dict[str, Any] = {
    "mac_reduction": 0.5, "min_channels": 2, "start": 0.1, "end": 0.7, "tasks_every": 2, "checks": 4,
    "losses": {"shape": "20 %", "depth": 0.2},
}  # fmt: skip
Evaluate = Callable[[nn.Module], Mapping[str, Told]]


def losses_of(outputs: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    classes = (image.mean((1, 2, 3)) > 0).long()
    depth = (outputs["depth"] - image.mean(1, keepdim=True)).square().mean()
    return {"shape": nn.functional.cross_entropy(outputs["shape"], classes), "depth": depth}


def shrinking_of(evaluate: Evaluate | None = None, **more: Any) -> Shrinking:
    model = two_heads()
    return Shrinking(
        model, adam(model), example(), total_steps=STEPS, evaluate=evaluate, **{**SETTINGS, **more}
    )


def train(
    shrinking: Shrinking, epochs: range = range(EPOCHS), told: Mapping[str, Told] | None = None
) -> Shrinking:
    for epoch in epochs:
        for image in batches(epoch):
            shrinking.optimizer.zero_grad()
            losses = losses_of(shrinking.model(image), image)
            shrinking.look(losses)
            backward(torch.stack(list(losses.values())).sum())
            shrinking.optimizer.step()
            shrinking.step()
            if told is not None and shrinking.check_due:
                shrinking.judge(told)
        shrinking.end_epoch()
    return shrinking


class Worse:
    """Tells each task's value, `loss` worse from the check number `first` on; counts how often it was asked."""

    def __init__(self, first: int = 99, loss: float = 0.5) -> None:
        self.first, self.loss, self.asked = first, loss, 0
        self.training: list[bool] = []

    def __call__(self, model: nn.Module) -> Mapping[str, Told]:
        self.asked += 1
        self.training.append(model.training or torch.is_grad_enabled())
        loss = self.loss if self.asked > self.first else 0.0
        return {"shape": 1.0 - loss, "depth": (torch.full((20,), 1.0 + loss), False)}


@pytest.mark.slow  # about a second
@pytest.mark.parametrize("shrink_every", [None, 1])
def test_within_the_bounds_the_budget_is_met(shrink_every: int | None) -> None:
    evaluate = Worse()
    shrinking = train(shrinking_of(evaluate, shrink_every=shrink_every))
    result = shrinking.finish()
    assert result.report.mac_reduction >= 0.5
    assert evaluate.asked == 5 and not any(evaluate.training)
    assert shrinking.report()["bounds"]["steps_back"] == 0
    assert any("shrinking stops short of its target" in note for note in shrinking.notes())


@pytest.mark.slow  # about a second
def test_where_a_bound_breaks_it_stops_and_says_so() -> None:
    shrinking = train(shrinking_of(Worse(2), shrink_every=1))
    assert shrinking.reached
    with pytest.warns(CompactWarning, match="the tasks' bounds ended it at .* shape lost 50 %"):
        result = shrinking.finish()
    assert 0 < result.report.mac_reduction < 0.5


@pytest.mark.slow  # about a second
def test_told_by_hand_it_is_the_same() -> None:
    one = train(shrinking_of(Worse()))
    values: dict[str, Told] = {"shape": 1.0, "depth": (torch.ones(20), False)}
    other = train(shrinking_of(), told=values)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow  # about a second
def test_a_resumed_loop_is_bit_equal() -> None:
    def saved(shrinking: Shrinking) -> list[Any]:
        parts = (shrinking.model, shrinking.optimizer, shrinking)
        return copy.deepcopy([part.state_dict() for part in parts])

    whole = train(shrinking_of(Worse(2), shrink_every=1))
    first = shrinking_of(Worse(2), shrink_every=1)
    train(first, range(2))
    again = Worse(2)
    again.asked = first._evaluate.asked  # type: ignore[union-attr]
    second = shrinking_of(again, shrink_every=1)
    parts: tuple[Any, ...] = (second.model, second.optimizer, second)
    for part, state in zip(parts, saved(first), strict=True):
        part.load_state_dict(state)
    train(second, range(2, EPOCHS))
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_check_that_nobody_judges_is_an_error() -> None:
    with pytest.raises(TrainingError, match="nobody judged what the tasks have lost"):
        train(shrinking_of(), range(1))


def test_the_last_check_is_judged_before_it_is_finished() -> None:
    shrinking = shrinking_of(end=1.0, checks=1)
    step = shrinking.step

    def judged_but_the_last() -> bool:
        done = step()
        if shrinking.check_due and shrinking.steps < STEPS:
            shrinking.judge({"shape": 1.0, "depth": 1.0})
        return done

    shrinking.step = judged_but_the_last  # type: ignore[method-assign]
    train(shrinking)
    with pytest.raises(TrainingError, match="nobody judged what the tasks have lost"):
        shrinking.finish()
    shrinking.judge({"shape": 1.0, "depth": 1.0})
    assert shrinking.finish().report.mac_reduction >= 0.5


def test_judging_while_no_check_is_due_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no check is due"):
        shrinking_of().judge({"shape": 1.0})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"losses": {}, "evaluate": Worse()}, "no losses are bounded"),
        ({"evaluate": 0.3}, "evaluate is a float"),
        ({"method": "controller"}, "there is no option"),
        ({"losses": {"depth": -0.1}}, "of at least 0"),
        ({"losses": {"depth": 1}}, "1 is 100 %, and a bound is less than all of it"),
        ({"tasks_every": 0}, "losses need an importance for each task"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        shrinking_of(**arguments)
    assert says in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    ("losses", "kind", "says"),
    [
        (torch.ones(()), ConfigError, "was given a Tensor"),
        ({"shape": 0.3}, ConfigError, "the loss of 'shape' is a float"),
        ({"shape": torch.ones(4, requires_grad=True)}, ConfigError, r"'shape' has shape \(4,\)"),
        ({"shape": torch.ones(()), "depth": torch.ones(())}, TrainingError, "losses without a graph"),
    ],
)
def test_losses_that_have_no_gradients_are_refused(losses: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        check_looked(losses)
    check_looked({"shape": torch.ones((), requires_grad=True), "depth": torch.ones(())})  # with nothing known


def test_values_are_numbers_or_samples_and_higher_is_better_by_default() -> None:
    found = as_held_out({"a": 0.5, "b": (torch.arange(4.0), False), "c": [1, 2]})
    assert (found["a"].value, found["a"].parts, found["a"].higher_is_better) == (0.5, (), True)
    assert (found["b"].value, found["b"].parts, found["b"].higher_is_better) == (
        1.5,
        (0.0, 1.0, 2.0, 3.0),
        False,
    )
    assert found["c"].value == 1.5
    twenty = as_held_out({"a": torch.arange(20.0)})["a"].parts
    assert twenty == tuple(5.0 + number for number in range(10))


@pytest.mark.parametrize(
    ("told", "says"), [({"a": "many"}, "is a str"), ({"a": []}, "has no value"), ([1.0], "are a list")]
)
def test_other_values_are_refused(told: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        as_held_out(told)
