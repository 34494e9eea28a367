"""Shrinking in a plain loop: stopped and resumed, and what is refused or said where weights and zeros disagree."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from compactmtl.errors import CompactWarning, TrainingError
from compactmtl.loops import Shrinking
from compactmtl.surgery import CompactResult, compact
from tests.loops.nets import (
    EPOCHS,
    STEPS,
    adam,
    backward,
    batches,
    example,
    loss_of,
    two_heads,
)
from tests.loops.plain_loop import shrinking_of, train, trained

pytestmark = pytest.mark.slow  # each trains, about a second


@pytest.mark.parametrize("order", [["shrinking", "model", "optimizer"], ["model", "optimizer", "shrinking"]])
@pytest.mark.parametrize("stop", [1, 3])  # before channels went, and after
def test_it_goes_on_bit_equal_in_any_order_of_loading(stop: int, order: list[str]) -> None:
    expected, _ = trained(shrink_every=1)
    model = two_heads()
    optimizer = adam(model)
    shrinking = shrinking_of(model, optimizer, shrink_every=1)
    train(shrinking, range(stop))
    file = io.BytesIO()
    states: dict[str, Any] = {"model": model, "optimizer": optimizer, "shrinking": shrinking}
    torch.save({name: one.state_dict() for name, one in states.items()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert [v.shape for v in loaded["model"].values()] == [v.shape for v in two_heads().state_dict().values()]

    model = two_heads(seed=5)
    optimizer = adam(model)
    shrinking = shrinking_of(model, optimizer, shrink_every=1)
    states = {"model": model, "optimizer": optimizer, "shrinking": shrinking}
    for name in order:
        states[name].load_state_dict(loaded[name])
    train(shrinking, range(stop, EPOCHS))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [p.shape for p in model.parameters()] == [p.shape for p in expected.parameters()]


def test_states_have_the_size_of_the_network_once_it_is_finished() -> None:
    model, shrinking = trained(shrink_every=1)
    wide = [v.shape for v in two_heads().state_dict().values()]
    copied = copy.deepcopy(model)
    assert [v.shape for v in model.state_dict().values()] == wide
    assert [v.shape for v in copied.state_dict().values()] != wide  # a copy is another network
    assert [v.shape for v in shrinking.finish().model.state_dict().values()] != wide
    own = dict(model.named_parameters())
    assert all(value.shape == own[name].shape for name, value in model.state_dict().items() if name in own)


def test_it_draws_no_random_number() -> None:
    model = two_heads()
    optimizer = adam(model)
    before = torch.get_rng_state()
    shrinking = shrinking_of(model, optimizer, shrink_every=1)
    assert torch.equal(torch.get_rng_state(), before)
    train(shrinking)
    assert shrinking.finish().report.mac_reduction >= 0.5
    assert torch.equal(torch.get_rng_state(), before)  # the batches have a generator of their own


@pytest.mark.parametrize("method", ["selective", "controller", "magnitude"])
def test_weights_of_before_the_choice_are_not_finished(method: str) -> None:
    """As of the best epoch, which may be one of the dense network."""
    model = two_heads()
    arguments: dict[str, Any] = {"method": method, "mac_reduction": 0.5, "min_channels": 2}
    shrinking = Shrinking(model, adam(model), example(), total_steps=STEPS, **arguments)
    older = copy.deepcopy(model.state_dict())
    train(shrinking)
    newer = copy.deepcopy(model.state_dict())
    model.load_state_dict(older)
    with pytest.raises(
        TrainingError, match=r"\d+ of the \d+ channel groups of encoder\.0 that were zero are not any more"
    ) as caught:
        shrinking.finish()
    assert "saved with this state" in caught.value.hint
    model.load_state_dict(newer)
    assert shrinking.finish().report.mac_reduction >= 0.5


def test_channels_of_weights_of_before_the_choice_are_not_removed() -> None:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model), shrink_every=EPOCHS)
    older = copy.deepcopy(model.state_dict())
    for _ in range(EPOCHS - 1):
        shrinking.end_epoch()
    for epoch in range(EPOCHS):
        for image in batches(epoch):
            shrinking.optimizer.zero_grad()
            backward(loss_of(model(image), image))
            shrinking.optimizer.step()
            shrinking.step()
    model.load_state_dict(older)
    with pytest.raises(TrainingError, match="that were zero are not any more"):
        shrinking.end_epoch()
    assert all(value.shape == older[name].shape for name, value in model.named_parameters())


def test_weights_of_before_the_choice_are_finished_where_that_is_asked_for() -> None:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model))
    older = copy.deepcopy(model.state_dict())
    train(shrinking)
    model.load_state_dict(older)
    assert shrinking.finish(early=True).report.mac_reduction == 0


def test_a_budget_that_was_missed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a control leaves: here it holds nothing."""
    model = two_heads()
    shrinking = shrinking_of(model, adam(model))
    train(shrinking)
    for flags in shrinking._steering.control.held or ():
        flags.zero_()
    with pytest.raises(TrainingError, match=r"the budget is missed: 0\.000 of the macs can go, 0\.5 have to"):
        shrinking.finish()


def test_surgery_that_leaves_more_than_the_budget_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model))
    train(shrinking)

    def rolled_back(model: nn.Module, inputs: Any, **options: Any) -> CompactResult:
        return compact(two_heads(), inputs, **options)

    monkeypatch.setattr("compactmtl.loops.shrinking.compact", rolled_back)
    with pytest.warns(CompactWarning, match=r"mac_reduction is 0\.5, and surgery could remove 0\.000"):
        shrinking.finish()


def test_a_constant_strength_keeps_counts_at_multiples_of_align() -> None:
    model = two_heads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    shrinking = Shrinking(model, optimizer, example(), total_steps=STEPS, strength=0.2, align=4)
    train(shrinking)
    counts = [layer.after[0] for layer in shrinking.finish().report.layers if layer.after != layer.before]
    assert counts and all(count % 4 == 0 for count in counts if count > 3)


def test_finishing_early_is_said_and_not_done_by_itself() -> None:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model))
    train(shrinking, range(1))
    result = shrinking.finish(early=True)
    assert result.report.mac_reduction < 0.5
