"""What the recipe's regularization does to a step: to the encoder, to the heads, to a run that is resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train.session import Session, build_session

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


def test_a_penalty_of_no_strength_leaves_the_run_bit_equal(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    plain = train(tiny("train.max_steps=3"), tmp_path / "plain", console=quiet())
    none = train(tiny("train.max_steps=3", more=DGR % 0), tmp_path / "none", console=quiet())
    assert_equal(plain, none)
    (epoch,) = [event for event in none.log() if event["event"] == "epoch"]
    assert epoch["train"]["penalties"] == {"dgr": 0.0}


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
        assert session.regularizer is not None
        assert session.regularizer.pseudo is not None
        assert all((id(p) in held) == trained for p in session.regularizer.pseudo.parameters())
        assert not [name for name in session.model.state_dict() if "pseudo" in name]


def test_sam_and_loss_scaling_exclude_each_other(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="float16"):
        build_session(tiny("train.autocast=float16", more="\nregularization: {sam: {}}\n").recipe)
