"""A step calls its parts in one order, and a part of any kind is saved, resumed and skipped like the others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images
from compactmtl.errors import ArtifactError
from compactmtl.runs.checkpoint import load_state
from compactmtl.train import parts as order
from compactmtl.train import train
from compactmtl.train.balance import Balancing
from compactmtl.train.build import build_session
from compactmtl.train.distill import Distiller
from compactmtl.train.part import ForwardPass, Part, Training
from compactmtl.train.parts import find_part
from compactmtl.train.pseudo import PseudoHeads
from compactmtl.train.regularize import Penalties
from compactmtl.train.session import Session
from compactmtl.train.shrink import Shrinker
from compactmtl.train.sparse import Sparsifier
from compactmtl.train.uphill import Uphill

Make = Callable[..., Resolved]

EVERY = """
regularization: {pta: {decoders: 2}, sam: {rho: 0.05}, dgr: {strength: 0.1}}
distillation: {teacher: self, start: 0.3}
sparsity: {shrink_every: 1, selective: {mac_reduction: 0.3, start: 0.5, end: 0.8, every: 1, min_channels: 4}}
"""


class Recorder(Part):
    """Notes each hook, with how many parameters have gradients and where the weights are."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.norm = 0.0
        self.steps = 0

    def before_forward(self, image: Images) -> Images:
        self.calls.append("before_forward")
        return image

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        assert current.total is None and set(current.losses) == set(training.tasks)
        self.calls.append("after_forward")

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        assert current.total is not None  # the balancer comes before
        self.calls.append("before_backward")

    def after_backward(self, training: Training, batch: Batch) -> None:
        gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
        self.norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        self.calls.append("after_backward")

    def after_step(self, training: Training, batch: Batch) -> None:
        self.steps += 1
        self.calls.append("after_step")

    def state_dict(self) -> Any:
        return {"steps": self.steps}

    def load_state_dict(self, training: Training, state: Any) -> None:
        self.steps = state["steps"]


def step(session: Session, factor: float = 1.0) -> None:
    session.model.train()
    _, total = session.forward(next(iter(session.train_loader)))
    session.update(total * factor)


def gradient_norm(session: Session) -> float:
    return float(
        torch.stack([p.grad.norm() for p in session.model.parameters() if p.grad is not None]).norm()
    )


@pytest.fixture(scope="module")
def every(tiny: Make) -> Session:
    return build_session(tiny("tasks.segmentation.head.dropout=0", more=EVERY).recipe)


@pytest.mark.slow
def test_every_part_stands_in_the_one_order(every: Session) -> None:
    expected = [PseudoHeads, Distiller, Shrinker, Uphill, Sparsifier, Balancing, Penalties]
    assert [type(part) for part in every.parts] == expected


def test_the_state_of_each_part_has_its_key_of_earlier_versions(every: Session) -> None:
    parts = {"regularizer", "distillation", "shrunk", "sparsifier", "balancer"}
    assert set(every.state_dict()) == parts | {"position", "optimizer", "schedule", "scaler"}


def test_a_checkpoint_without_the_state_of_a_part_is_refused(every: Session) -> None:
    state = every.state_dict()
    del state["distillation"]
    with pytest.raises(ArtifactError, match="no state of distillation"):
        every.load_state_dict(state)


def test_hooks_come_in_the_order_of_a_step_and_gradients_before_they_are_clipped(tiny: Make) -> None:
    session = build_session(tiny("train.clip=0.01").recipe)
    recorder = Recorder()
    session.parts = (*session.parts, recorder)
    step(session)
    hooks = ["before_forward", "after_forward", "before_backward", "after_backward", "after_step"]
    assert recorder.calls == hooks
    assert recorder.norm > 0.02
    assert gradient_norm(session) == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_the_scaler_skips_is_none_for_the_parts(tiny: Make) -> None:
    session = build_session(tiny("train.autocast=float16").recipe)
    recorder = Recorder()
    session.parts = (*session.parts, recorder)
    before = {name: value.detach().clone() for name, value in session.model.named_parameters()}
    step(session, factor=float("inf"))
    assert recorder.calls[-1] == "after_backward"
    assert all(torch.equal(value, before[name]) for name, value in session.model.named_parameters())
    assert session.position.step == 1


@pytest.mark.parametrize("more", ["balancing={name: upgrad}", "balancing={name: mgda, at: features}"])
def test_the_scaler_goes_with_gradients_of_several_losses(tiny: Make, more: str) -> None:
    session = build_session(tiny("train.autocast=float16", more).recipe)
    before = {name: value.detach().clone() for name, value in session.model.named_parameters()}
    step(session)
    state = copy.deepcopy(session.scaler.state_dict())
    assert any(not torch.equal(value, before[name]) for name, value in session.model.named_parameters())
    other = build_session(tiny("train.autocast=float16", more).recipe)
    other.scaler.load_state_dict({**state, "scale": 8.0})
    assert other.scaler.get_scale() == 8.0
    step(other)


@pytest.mark.slow
def test_a_part_of_a_new_kind_is_in_the_checkpoint_and_resumed(
    tiny: Make, tmp_path: Path, quiet: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Recorder] = []

    def build_recorder(setup: object) -> Recorder:
        built.append(Recorder())
        return built[-1]

    monkeypatch.setattr(order, "ORDER", (*order.ORDER, build_recorder))
    resolved = tiny("train.epochs=1", "train.max_steps=2")
    run = train(resolved, tmp_path / "run", console=quiet())
    state = load_state(run.path / "checkpoints" / "last")
    assert state is not None and state["session"]["recorder"] == {"steps": 2}
    session = build_session(resolved.recipe)
    session.load_state_dict(state["session"])
    resumed = find_part(session.parts, Recorder)
    assert resumed is built[-1] and resumed.steps == 2
