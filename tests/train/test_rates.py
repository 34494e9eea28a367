"""Learning rates of the encoder's layers: who has which, and that they last through factors, shrinking and resuming."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from compactmtl.config import Resolved
from compactmtl.train import TrainingInterrupted, train
from compactmtl.train.build import build_session
from compactmtl.train.optimizers import rate_scales
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]

RATES = ("train.optimizer.lr=0.5", "train.optimizer.encoder_scale=0.5", "train.optimizer.layer_decay=0.5")
STEADY = ("train.schedule.name=constant", "train.schedule.warmup=0")
ALTERNATING = "\noverparam: {training: alternating, alternating: {warmup: 0.2}}\n"
SHRINKING = (
    "\nsparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1,"
    " min_channels: 4}}\n"
)


def peaks(session: Session) -> dict[str, float]:
    """Each parameter's peak rate by its name; one that is in two groups, or in none, is an error."""
    names = {id(parameter): name for name, parameter in session.model.named_parameters()}
    found = [
        (names[id(parameter)], group["initial_lr"])
        for group in session.optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_rates_fall_from_the_heads_to_the_stem(tiny: Make) -> None:
    found = peaks(build_session(tiny(*RATES).recipe))
    assert {rate for name, rate in found.items() if name.startswith("heads.")} == {0.5}
    # resnet10t: a stem and four blocks
    layers = ["conv1.", "layer1.0.", "layer2.0.", "layer3.0.", "layer4.0."]
    for behind, layer in enumerate(reversed(layers)):
        rates = {rate for name, rate in found.items() if name.startswith(f"encoder.{layer}")}
        assert rates == {0.5 * 0.5 * 0.5**behind}, layer


def test_one_rate_builds_the_groups_that_it_always_built(tiny: Make) -> None:
    recipe = tiny().recipe
    session = build_session(recipe)
    assert rate_scales(recipe.train.optimizer, recipe.model.encoder, session.model) == {}
    decayed, plain = session.optimizer.param_groups
    named = dict(session.model.named_parameters())
    assert [id(p) for p in decayed["params"]] == [id(p) for p in named.values() if p.ndim > 1]
    assert [id(p) for p in plain["params"]] == [id(p) for p in named.values() if p.ndim == 1]
    assert (decayed["initial_lr"], plain["initial_lr"]) == (2e-3, 2e-3)


def test_factors_have_their_layer_s_share_of_their_own_rate(tiny: Make) -> None:
    found = peaks(build_session(tiny(*RATES, more="\noverparam: {lr_scale: 0.1}\n").recipe))
    assert found["encoder.layer4.0.conv1.U"] == pytest.approx(0.5 * 0.1 * 0.5)
    assert found["encoder.layer3.0.conv1.U"] == pytest.approx(0.5 * 0.1 * 0.25)
    assert found["encoder.layer3.0.bn1.weight"] == pytest.approx(0.5 * 0.25)


def test_the_diagonals_pass_follows_the_layers_too(tiny: Make) -> None:
    diagonals = build_session(tiny(*RATES, more=ALTERNATING).recipe).diagonals
    assert diagonals is not None
    rates = [group["initial_lr"] for group in diagonals.optimizer.param_groups]
    assert rates == sorted(rates, reverse=True)
    assert rates[:2] == [0.25, 0.125]  # of the last layer, of the one before
    held = [id(row) for group in diagonals.optimizer.param_groups for row in group["params"]]
    assert sorted(held) == sorted(id(row) for rows in diagonals._rows.values() for row in rows.values())


def test_a_step_of_the_encoder_is_as_much_shorter_as_its_rate(tiny: Make) -> None:
    moved = []
    for scale in (1.0, 0.25):
        overrides = ("train.optimizer={name: sgd, lr: 0.1, weight_decay: 0}", *STEADY)
        session = build_session(tiny(*overrides, f"train.optimizer.encoder_scale={scale}").recipe)
        before = {name: value.detach().clone() for name, value in session.model.named_parameters()}
        session.train_loader.sampler.set_epoch(1)
        _, total = session.forward(next(iter(session.train_loader)))
        session.update(total)
        moved.append({name: value - before[name] for name, value in session.model.named_parameters()})
    whole, quarter = moved
    for name in ("encoder.layer4.0.bn2.bias", "encoder.conv1.0.weight"):
        torch.testing.assert_close(quarter[name], 0.25 * whole[name], rtol=1e-3, atol=1e-7)
    head = next(name for name in whole if name.startswith("heads.depth."))
    assert torch.equal(whole[head], quarter[head])


@pytest.mark.slow
@pytest.mark.parametrize("more", [ALTERNATING, SHRINKING], ids=["alternating", "shrinking"])
def test_an_interrupted_run_with_these_rates_resumes_bit_equal(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    rates = ("train.optimizer.encoder_scale=0.5", "train.optimizer.layer_decay=0.8")
    resolved = tiny("train.epochs=4", "tasks.segmentation.head.dropout=0", *rates, more=more)
    whole = train(resolved, tmp_path / "whole", console=quiet())
    update, calls = Session.update, []

    def stop(self: Session, loss: torch.Tensor) -> None:
        update(self, loss)
        calls.append(1)
        if len(calls) == 14:  # in the last epoch, after channels went
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", stop)
        with pytest.raises(TrainingInterrupted):
            train(resolved, tmp_path / "run", console=quiet())
    again = train(resolved, tmp_path / "run", resume=True, console=quiet())
    first, second = whole.load_model("last").state_dict(), again.load_model("last").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    epochs = [event for event in again.log() if event["event"] == "epoch"]
    assert more == ALTERNATING or epochs[-1]["sparsity"]["parameters_removable"] > 0.1
