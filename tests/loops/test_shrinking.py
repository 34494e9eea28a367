"""Shrinking in a plain loop: what it removes, and that accumulation, clipping, scalers, averages and compilers don't matter."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compactmtl.errors import CompactWarning, TrainingError
from compactmtl.loops import Shrinking
from compactmtl.sparsity import channel_groups, split_parameter_groups
from compactmtl.surgery import CompactResult, apply_plan, compact
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

pytestmark = pytest.mark.slow  # each trains, about a second

SETTINGS: dict[str, Any] = {"min_channels": 2, "every": 2, "start": 0.1, "end": 0.6, "importance_steps": 4}


def shrinking_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float64, **more: Any
) -> Shrinking:
    arguments = {"mac_reduction": 0.5, **SETTINGS, **more}
    return Shrinking(model, optimizer, example(dtype), total_steps=STEPS, **arguments)


def train(
    shrinking: Shrinking,
    epochs: range = range(EPOCHS),
    after_backward: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    for epoch in epochs:
        for image in batches(epoch):
            shrinking.optimizer.zero_grad()
            backward(loss_of(shrinking.model(image), image))
            after_backward()
            shrinking.optimizer.step()
            assert shrinking.step()
            after_step()
        shrinking.end_epoch()


def trained(**more: Any) -> tuple[nn.Module, Shrinking]:
    model = two_heads()
    shrinking = shrinking_of(model, adam(model), **more)
    train(shrinking)
    return model, shrinking


def assert_same_function(one: nn.Module, other: nn.Module, tolerance: float = 1e-9) -> None:
    image = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for name, expected in one.eval()(image).items():
            torch.testing.assert_close(other.eval()(image)[name], expected, rtol=0, atol=tolerance)


def whole(result: CompactResult) -> None:
    """The compact model is what the plan makes of a network as it is built."""
    again = apply_plan(TwoHeads().double(), result.plan)
    assert [v.shape for v in again.state_dict().values()] == [
        v.shape for v in result.model.state_dict().values()
    ]


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
