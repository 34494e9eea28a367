"""Bounds on what tasks may lose: they stop the shrinking, what the last stage removed comes back, a resumed run is the same."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from compactmtl.errors import DataError, TrainingError
from compactmtl.sparsity.bounds import TRIES, Bounds
from compactmtl.sparsity.held_out import HeldOut, Loss, lost, standard_error
from tests.sparsity.two_tasks import Training, unharmed


def values(loss: float) -> dict[str, HeldOut]:
    return {"near": HeldOut(1.0 + loss, (1.0 + loss, 1.0 + loss)), "far": HeldOut(1.0)}


class Breaking:
    """Says that a task lost `loss` at the checks of these numbers (from 0), and nothing at the others."""

    def __init__(self, *numbers: int, loss: float = 0.5) -> None:
        self._numbers, self._loss, self._asked = numbers, loss, 0

    def __call__(self, model: nn.Module) -> Mapping[str, HeldOut]:
        self._asked += 1
        return values(self._loss if self._asked - 1 in self._numbers else 0.0)


def test_a_loss_is_relative_and_signed_by_what_is_better() -> None:
    assert lost(HeldOut(2.0), HeldOut(2.1)).share == pytest.approx(0.05)
    up = lost(HeldOut(0.8, higher_is_better=True), HeldOut(0.82, higher_is_better=True))
    assert up.share == pytest.approx(-0.025) and up.error is None
    assert lost(HeldOut(0.0), HeldOut(0.0)).share == 0 and lost(HeldOut(0.0), HeldOut(0.1)).share == math.inf


def test_its_standard_error_is_of_the_same_samples() -> None:
    before, after = HeldOut(2.0, (1.0, 2.0, 3.0)), HeldOut(2.2, (1.1, 2.3, 3.2))
    parts = [0.1, 0.15, 0.2 / 3]
    assert lost(before, after).error == pytest.approx(statistics.stdev(parts) / math.sqrt(3))
    assert lost(before, HeldOut(2.2, (1.0,))).error is None  # of other samples
    assert standard_error([1.0, math.nan]) is None and standard_error([1.0, 3.0, math.nan]) == pytest.approx(
        1.0
    )


def test_a_bound_holds_within_one_standard_error_and_no_further() -> None:
    assert Loss(0.012, 0.003).within(0.01) and not Loss(0.0131, 0.003).within(0.01)
    assert Loss(0.0, None).within(0.0) and not Loss(1e-9, None).within(0.0)
    assert not Loss(math.nan, 0.1).within(1.0)


def test_checks_lie_evenly_between_start_and_end() -> None:
    assert Bounds.between({"near": 0.1}, 10, 50, 4).marks == (10, 20, 30, 40, 50)
    assert Bounds.between({"near": 0.1}, 1, 3, 16).marks == (1, 2, 3)
    bounds = Bounds.between({"near": 0.1}, 10, 50, 4)
    assert [bounds.gone_by(step) for step in (11, 15, 20, 21)] == [15, 15, 15, 25]


def test_the_reference_is_the_best_value_that_held() -> None:
    bounds = Bounds.between({"near": 0.1}, 0, 30, 3)
    assert bounds.measured(0, values(0.0), 0.0)
    assert bounds.measured(10, values(-0.5), 0.2)  # better: from now on the loss is of this
    assert bounds.reference["near"].value == 0.5
    assert not bounds.measured(20, values(-0.4), 0.4)
    assert bounds.checks[-1].losses["near"].share == pytest.approx(0.2)
    assert bounds.broken == ["near lost 20 % ± 0 %, at most 10 %"]


def test_a_task_without_a_number_is_an_error_at_first_and_breaks_its_bound_later() -> None:
    bounds = Bounds.between({"near": 0.1}, 0, 30, 3)
    for value in (math.nan, math.inf):  # of which nothing is a share
        with pytest.raises(DataError, match=f"bound of task 'near' cannot be watched: .* gives it {value}"):
            bounds.measured(0, {"near": HeldOut(value)}, 0.0)
    with pytest.raises(DataError, match="'near' cannot be watched: what was measured is of far"):
        bounds.measured(0, {"far": HeldOut(1.0)}, 0.0)
    assert bounds.measured(0, values(0.0), 0.0)
    assert not bounds.measured(10, {"near": HeldOut(math.nan)}, 0.1)
    assert bounds.report()["checks"][-1]["losses"]["near"]["share"] is None


@pytest.mark.slow  # trains, seconds
def test_bounds_that_hold_reach_the_target() -> None:
    training = Training().run(48)
    assert training.control.reached and not training.control.short
    assert training.control.removed() >= 0.6
    bounds = training.control.bounds
    assert bounds is not None and [check.step for check in bounds.checks] == list(bounds.marks)
    shares = [check.share for check in bounds.checks]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert training.said == [""] * 7


@pytest.mark.slow  # trains, seconds
def test_a_bound_that_breaks_for_good_stops_it_where_it_held() -> None:
    training = Training(Breaking(*range(3, 99)), steps=100, checks=12).run(40)
    before = training.control.removed()
    training.run(60)
    bounds = training.control.bounds
    assert bounds is not None and bounds.stopped is not None and training.control.reached
    assert training.control.removed() <= before and training.control.removed() < 0.6
    assert "the tasks' bounds ended it at" in training.control.short
    assert "near lost 50 %" in training.control.short


@pytest.mark.slow  # trains, seconds
def test_after_some_steps_back_in_a_row_nothing_more_is_tried() -> None:
    # breaks after every stage, and has recovered at the check that follows
    training = Training(Breaking(*range(1, 99, 2)), steps=200, checks=20).run(200)
    bounds = training.control.bounds
    assert bounds is not None and bounds.steps_back == TRIES
    assert bounds.stopped == bounds.marks[2 * TRIES - 1]
    assert training.control.removed() == 0
    assert all(bool((family.norms() > 0).all()) for family in training.groups.bound)
    assert (
        training.said[1].endswith("channels are put back") and "shrinking ends with 0.0 %" in training.said[5]
    )


@pytest.mark.slow  # trains, seconds
def test_what_is_put_back_is_exactly_what_was_taken() -> None:
    training = Training(Breaking(2)).run(19)  # checks after 12, 18 and 24: within the second stage
    control = training.control
    snapshot = {name: value.clone() for name, value in control._snapshot._values.items()}
    statistics_before = {name: value.clone() for name, value in control._snapshot._statistics.items()}
    moments = copy.deepcopy(control._snapshot._moments)
    settled = [flags.clone() for flags in control.settled]
    training.run(4)
    pending = [dead & ~old for dead, old in zip(control.held, settled, strict=True)]
    assert sum(int(flags.sum()) for flags in pending) > 0, "the stage removed something"
    alive = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    training.run(1)
    assert training.said[-1].endswith("put back")
    assert control._families is not None
    for family, flags in zip(training.groups.bound, pending, strict=True):
        assert not bool(family.zeros()[flags].any())
        for s in family.tensors:
            rows = s.spread(flags, False).expand_as(s.parameter)
            assert torch.equal(s.parameter[rows], snapshot[s.name][rows])
            for name, value in training.optimizer.state[s.parameter].items():
                if name in moments[s.name]:
                    assert torch.equal(value[rows], moments[s.name][name][rows])
            # nothing else went back: the others are where the step left them
            assert bool((s.parameter[~rows] != snapshot[s.name][~rows]).any()) or not bool((~rows).any())
    buffers = dict(training.model.named_buffers())
    for name, value in statistics_before.items():
        flags = pending[0] if name.startswith("encoder.1.") else pending[1]
        assert torch.equal(buffers[name][flags], value[flags])
    assert set(alive) == {name for name, _ in training.model.named_parameters()}
    assert [flags.tolist() for flags in control.settled] == [flags.tolist() for flags in settled]


@pytest.mark.slow  # trains, seconds
def test_nothing_leaves_the_network_before_its_check() -> None:
    training = Training().run(16)
    held, settled = training.control.held, training.control.settled
    assert sum(int(flags.sum()) for flags in held) > sum(int(flags.sum()) for flags in settled) == 0
    training.run(2)  # the check after 18
    assert [one.tolist() for one in training.control.held] == [
        one.tolist() for one in training.control.settled
    ]


@pytest.mark.slow  # trains, seconds
@pytest.mark.parametrize("after", [17, 25, 40])  # within a stage, after a step back, near the end
def test_a_resumed_run_is_bit_equal(after: int) -> None:
    whole = Training(Breaking(2)).run(60)
    first = Training(Breaking(2)).run(after)
    second = Training(Breaking(2))
    assert isinstance(first.judge, Breaking) and isinstance(second.judge, Breaking)
    second.judge._asked = first.judge._asked
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.control.load_state_dict(copy.deepcopy(first.control.state_dict()))
    second.done = first.done
    second.run(60 - after)
    for one, other in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    report, again = whole.control.report(), second.control.report()
    for one in (report, again):
        one["task_importance"].pop("seconds")
        one["bounds"].pop("seconds")
    assert report == again


@pytest.mark.slow  # trains, seconds
def test_bounds_need_the_tasks_losses() -> None:
    training = Training()
    training.control.look = lambda losses, scale=1.0: None  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="no task's importance is known"):
        training.run(12)


@pytest.mark.slow  # trains, seconds
def test_what_a_bounded_task_needs_is_kept() -> None:
    """With a task at its bound, less of its importance goes than without bounds."""
    free = Training(unharmed, losses={}).run(48)
    tight = Training(Breaking(*range(1, 99), loss=0.099), losses={"near": 0.1}).run(48)
    lost_near = []
    for training in (free, tight):
        record = training.control.tasks.whole(training.control.held)
        lost_near.append(sum(float(shares[0][gone].sum()) for gone, shares in record))
    assert lost_near[1] < lost_near[0]
