"""What the recipe's regularization does to a step: to the encoder, to the heads, to a run that is resumed."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train.build import build_session
from compactmtl.train.part import Setup
from compactmtl.train.pseudo import PseudoHeads, build_pseudo_heads
from compactmtl.train.regularize import Penalties, build_penalties
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]

DGR = "\nregularization: {dgr: {strength: %g}}\n"
STATEFUL = """
balancing: {name: gradvac, at: features}
regularization:
  dgr: {strength: 1.0e-3, schedule: {name: cosine, warmup: 0.2}}
  pta: {control: perturb, decoders: 2}
  sam: {rho: 0.01}
"""


def gradients(make: Make, more: str, *overrides: str) -> dict[str, Tensor]:
    """Every gradient of the model after one backward pass."""
    session = build_session(make("tasks.segmentation.head.dropout=0", *overrides, more=more).recipe)
    batch = next(iter(session.train_loader))
    session.model.train()
    _, total = session.forward(batch)
    session.update(total)
    return {name: p.grad for name, p in session.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("balancing", ["equal", "mgda"])
def test_dummies_reach_the_encoder_and_no_head(tiny: Make, balancing: str) -> None:
    name = f"balancing.name={balancing}"
    without, with_it = gradients(tiny, "", name), gradients(tiny, DGR % 1e3, name)
    heads = [key for key in without if key.startswith("heads.")]
    assert heads
    assert all(torch.equal(without[key], with_it[key]) for key in heads)
    assert not torch.equal(without["encoder.conv1.0.weight"], with_it["encoder.conv1.0.weight"])


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "checkpoints" / "last" / "weights.safetensors")


def assert_equal(one: Run, other: Run) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_penalty_of_no_strength_leaves_the_run_bit_equal(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    plain = train(tiny("train.max_steps=3"), tmp_path / "plain", console=quiet())
    none = train(tiny("train.max_steps=3", more=DGR % 0), tmp_path / "none", console=quiet())
    assert_equal(plain, none)
    (epoch,) = [event for event in none.log() if event["event"] == "epoch"]
    assert epoch["train"]["penalties"] == {"dgr": 0.0}


@pytest.mark.slow
def test_what_has_a_state_is_resumed_bit_equal(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = tiny("train.max_steps=6", more=STATEFUL)
    whole = train(resolved, tmp_path / "whole", console=quiet())
    update = Session.update

    def stopping(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if self.position.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", stopping)
        with pytest.raises(TrainingInterrupted):
            train(resolved, tmp_path / "run", console=quiet())
    torch.randn(5)
    assert_equal(train(resolved, tmp_path / "run", resume=True, console=quiet()), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [
        "input_gradient: {strength: 0.1}",
        "weight_gradient: {strength: 0.1}",
        "sam: {rho: 0.1, adaptive: true}",
        "pta: {control: freeze}",
        "dgr: {strength: 10, mode: finite_difference, head: {width: 4, depth: 2, activation: gelu}}",
    ],
)
def test_each_comparator_changes_the_encoders_gradient(tiny: Make, section: str) -> None:
    without = gradients(tiny, "")["encoder.conv1.0.weight"]
    found = gradients(tiny, f"\nregularization: {{{section}}}\n")["encoder.conv1.0.weight"]
    assert torch.isfinite(found).all()
    assert not torch.equal(found, without)


def test_extra_heads_are_trained_and_frozen_ones_are_not(tiny: Make) -> None:
    for control, trained in (("independent", True), ("freeze", False)):
        recipe = tiny(more=f"\nregularization: {{pta: {{control: {control}}}}}\n").recipe
        session = build_session(recipe)
        held = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
        heads = session.part(PseudoHeads)
        assert heads is not None
        assert all((id(p) in held) == trained for p in heads.pseudo.parameters())
        assert not [name for name in session.model.state_dict() if "pseudo" in name]


@pytest.mark.parametrize("name", ["sam", "input_gradient", "weight_gradient"])
def test_two_gradients_a_step_and_loss_scaling_exclude_each_other(tiny: Make, name: str) -> None:
    options = "{}" if name == "sam" else "{strength: 0.1}"
    with pytest.raises(ConfigError, match=rf"{name} takes two gradients .* float16"):
        build_session(
            tiny("train.autocast=float16", more=f"\nregularization: {{{name}: {options}}}\n").recipe
        )


@pytest.mark.slow
def test_dummies_use_the_attention_of_the_model_that_they_follow(tiny: Make) -> None:
    heads = [f"tasks.{task}.head={{kind: mtan, width: 8}}" for task in ("segmentation", "depth")]
    encoder = ["model.encoder.name=resnet18", "model.encoder.options={channels: [4, 4, 4, 4]}"]
    heads.append("tasks.segmentation.head.dropout=0")
    more = "\nregularization: {dgr: {strength: 1, dummies: 1}, pta: {decoders: 2, control: freeze}}\n"
    session = build_session(tiny(*heads, *encoder, more=more).recipe)
    penalties, further, other = (
        session.part(Penalties),
        session.part(PseudoHeads),
        copy.deepcopy(session.model),
    )
    assert penalties is not None and further is not None
    with torch.no_grad():
        for parameter in cast(nn.Module, other.encoder.attention).parameters():
            parameter.add_(0.1)
    setup = Setup(
        session.recipe, session.tasks, other, session.balancer, session.device, (torch.zeros(()),), 1, 1
    )
    fresh, fresh_heads = build_penalties(setup), build_pseudo_heads(setup)
    assert fresh is not None and fresh_heads is not None
    session.forward(next(iter(session.train_loader)))
    current = session.latest
    assert current is not None
    total = torch.zeros(())
    before = penalties.terms(current, total, 0)["dgr"].detach()
    for part in (penalties, further):
        part.rebind(other, {})
    after = penalties.terms(current, total, 0)["dgr"].detach()
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh.terms(current, total, 0)["dgr"].detach())
    own, theirs = (
        pseudo.outputs(current.features, (32, 48)) for pseudo in (further.pseudo, fresh_heads.pseudo)
    )
    assert all(torch.equal(own[task][0], theirs[task][0]) for task in own)
