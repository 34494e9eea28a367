"""Shrinking in a plain loop: what it removes, and that accumulation, clipping, scalers, averages and compilers don't matter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compactmtl.loops import Shrinking
from compactmtl.sparsity import channel_groups, split_parameter_groups
from tests.loops.nets import (
    EPOCHS,
    STEPS,
    TwoHeads,
    adam,
    backward,
    batches,
    example,
    loss_of,
    masks,
    two_heads,
)
from tests.loops.plain_loop import SETTINGS, assert_same_function, shrinking_of, train, trained, whole

pytestmark = pytest.mark.slow  # each trains, about a second


@pytest.mark.parametrize("shrink_every", [None, 1])
@pytest.mark.parametrize("method", ["selective", "magnitude"])
def test_it_meets_the_budget(method: str, shrink_every: int | None) -> None:
    more: dict[str, Any] = {"min_channels": 2, "at": 0.5} if method == "magnitude" else SETTINGS
    model = two_heads()
    shrinking = Shrinking(
        model,
        adam(model),
        example(),
        total_steps=STEPS,
        mac_reduction=0.5,
        method=method,  # type: ignore[arg-type]
        shrink_every=shrink_every,
        **more,
    )
    before_training = shrinking.reached
    train(shrinking)
    assert shrinking.reached > before_training and shrinking.report()["macs_removable"] >= 0.5
    before = sum(p.numel() for p in two_heads().parameters())
    assert (sum(p.numel() for p in model.parameters()) < before) == (shrink_every is not None)
    result = shrinking.finish()
    assert 0.5 <= result.report.mac_reduction < 0.7  # one channel of 16 more or less
    assert_same_function(model, result.model)
    whole(result)


@pytest.mark.parametrize("shrink_every", [None, 2])
@pytest.mark.parametrize("decides", [{"strength": 0.02}, {"mac_reduction": 0.4, "method": "controller"}])
def test_a_penalty_decides(decides: dict[str, Any], shrink_every: int | None) -> None:
    model = two_heads()
    groups = channel_groups(model, example(), scope="model")
    optimizer = torch.optim.AdamW(split_parameter_groups(model, groups, weight_decay=0.01), lr=1e-2)
    more: dict[str, Any] = {"warmup": 0.0, "shrink_every": shrink_every} | (
        {"min_channels": 2, "every": 2, "end": 0.5} if "method" in decides else {}
    )
    shrinking = Shrinking(model, optimizer, example(), total_steps=STEPS, **decides, **more)
    train(shrinking)
    result = shrinking.finish()
    assert result.report.mac_reduction >= decides.get("mac_reduction", 0.05)
    assert_same_function(model, result.model)


def test_removing_channels_on_the_way_changes_nothing_but_the_size() -> None:
    wide, unshrunk = trained()
    narrow, shrinking = trained(shrink_every=1)
    assert sum(p.numel() for p in narrow.parameters()) < 0.6 * sum(p.numel() for p in wide.parameters())
    assert shrinking.report()["layers"] == unshrunk.report()["layers"]
    back = two_heads(seed=1)
    back.load_state_dict(narrow.state_dict())  # at its first size
    for name, value in wide.named_parameters():
        found = back.get_parameter(name)
        left = found != 0  # what reads dead channels has gone too
        # sums of fewer terms in float64, over ten Adam steps
        torch.testing.assert_close(found[left], value[left], rtol=0, atol=1e-9)
    assert_same_function(wide, back)
    assert_same_function(wide, shrinking.finish().model)


def test_gradients_may_accumulate() -> None:
    expected, _ = trained()
    model = two_heads()
    optimizer = adam(model)
    shrinking = shrinking_of(model, optimizer)
    for epoch in range(EPOCHS):
        for image in batches(epoch):
            optimizer.zero_grad()
            for micro in range(2):
                backward(loss_of(model(image), image) / 2)
                model.eval() if micro else model.train()  # one update of the norms' statistics
                if micro:
                    optimizer.step()
                assert shrinking.step() is bool(micro)
            model.train()
    assert shrinking.steps == STEPS
    assert all(torch.equal(one, masks(model)[name]) for name, one in masks(expected).items())


@pytest.mark.parametrize("fused", [False, True])  # which unscales and skips within itself
@pytest.mark.parametrize("observe", [False, True])
def test_a_step_that_a_scaler_skips_is_none(observe: bool, fused: bool) -> None:
    def loop(scale: float) -> tuple[nn.Module, int, int]:
        model = two_heads(dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
        shrinking = shrinking_of(model, optimizer, torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        skipped = 0
        for epoch in range(EPOCHS):
            for image in batches(epoch, dtype=torch.float32):
                while True:
                    state = copy.deepcopy(model.state_dict())
                    optimizer.zero_grad()
                    backward(scaler.scale(64 * loss_of(model(image), image)))
                    if observe:
                        scaler.unscale_(optimizer)
                        shrinking.observe()
                    scaler.step(optimizer)
                    scaler.update()
                    if shrinking.step():
                        break
                    skipped += 1
                    model.load_state_dict(state)  # the norms' statistics
        assert shrinking.reached
        return model, skipped, shrinking.steps

    expected, none, steps = loop(1.0)
    found, some, same_steps = loop(2.0**127)
    assert none == 0 and some > 0 and steps == same_steps == STEPS
    for name, value in expected.state_dict().items():  # powers of two scale exactly
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_what_has_died_has_no_say_in_a_clipped_norm() -> None:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model))
    norms: list[float] = []

    def clip() -> None:
        gone = {name: mask for name, mask in masks(model).items() if mask.any() and shrinking.reached}
        for name, mask in gone.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None and not gradient[mask].any(), name
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))

    train(shrinking, after_backward=clip)
    assert shrinking.reached and max(norms) > 0.1
    assert shrinking.finish().report.mac_reduction >= 0.5


def test_observing_before_clipping_ranks_by_whole_gradients() -> None:
    def importance(observe: bool) -> list[Tensor]:
        model = two_heads()
        shrinking = shrinking_of(model, adam(model))

        def clip() -> None:
            if observe:
                shrinking.observe()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

        train(shrinking, range(1), after_backward=clip)
        found: list[Tensor] = shrinking.state_dict()["control"]["importance"]
        return found

    whole_ones, clipped = importance(True), importance(False)
    assert all(
        float(one.sum()) > 100 * float(other.sum()) for one, other in zip(whole_ones, clipped, strict=True)
    )


def test_a_closure_is_observed_when_it_has_run() -> None:
    expected, _ = trained()
    model = two_heads()
    optimizer = adam(model)
    shrinking = shrinking_of(model, optimizer)
    for epoch in range(EPOCHS):
        for image in batches(epoch):

            def closure(image: Tensor = image) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model(image), image)
                backward(loss)
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
            assert shrinking.step()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("shrink_every", [None, 1])
def test_an_average_is_cut_with_the_network_and_compacted(shrink_every: int | None) -> None:
    model = two_heads()
    ema = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    shrinking = shrinking_of(model, adam(model), averages=average, shrink_every=shrink_every)
    counts: list[int] = []

    def update() -> None:
        average.update_parameters(model)
        counts.append(int(average.n_averaged))

    train(shrinking, after_step=update)
    assert counts[0] == 1 and counts[-1] < STEPS and counts.count(1) == 2  # begun anew at the budget
    shapes = [p.shape for p in model.parameters()]
    assert [p.shape for p in average.module.parameters()] == shapes
    saved = average.state_dict()
    AveragedModel(TwoHeads().double()).load_state_dict(saved)  # at the first size
    result = shrinking.finish(average)
    assert result.report.mac_reduction >= 0.5
    assert_same_function(average.module, result.model)
    whole(result)


def test_a_compiled_network_goes_on_after_its_channels_went() -> None:
    expected, _ = trained(shrink_every=1)
    model = two_heads()
    compiled: Any = torch.compile(model, backend="eager")
    shrinking = Shrinking(
        compiled, adam(model), example(), total_steps=STEPS, mac_reduction=0.5, shrink_every=1, **SETTINGS
    )
    train(shrinking)
    for name, value in expected.named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name
    assert shrinking.finish().report.mac_reduction >= 0.5


def test_gradients_that_wait_are_cut_with_their_parameters() -> None:
    model, shrinking = trained(shrink_every=100)
    image = next(batches(9))
    backward(loss_of(model(image), image))
    before = {name: p.grad for name, p in model.named_parameters()}
    shrinking._epochs = 99
    assert shrinking.end_epoch()
    after = {name: p.grad for name, p in model.named_parameters()}
    smaller = 0
    for name, gradient in after.items():
        parameter, old = model.get_parameter(name), before[name]
        assert gradient is not None and old is not None and gradient.shape == parameter.shape
        assert float(gradient.sum()) == pytest.approx(float(old.sum()))  # what went had none
        smaller += gradient.numel() < old.numel()
    assert smaller
