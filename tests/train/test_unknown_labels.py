"""A step on a batch that knows nothing of a task: no gradient of it and no NaN, whatever the recipe adds to a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.train.build import build_session
from compactmtl.train.distill import FEATURES, Distiller, distillation_loss
from compactmtl.train.session import Session

Make = Callable[..., Resolved]

PLAIN = ["tasks.segmentation.head.dropout=0"]
VARIANTS = {
    "equal": "",
    "uncertainty": "balancing: {name: uncertainty}",
    "mgda": "balancing: {name: mgda}",
    "features": "balancing: {name: pcgrad, at: features}",
    "dgr": "regularization: {dgr: {strength: 0.1}}",
    "dgr plain": "regularization: {dgr: {strength: 0.1, norm: plain}}",
    "dgr difference": "regularization: {dgr: {strength: 0.1, mode: finite_difference, norm: plain}}",
    "pta": "regularization: {pta: {decoders: 2}}",
    "sam": "regularization: {sam: {rho: 0.05}}",
    "sam of weights": "regularization: {sam: {rho: 0.05, adaptive: true}}",
    "encoders of tasks": "overparam: {per_task: true, training: alternating}",
    "alternating": "overparam: {training: alternating, alternating: {warmup: 0}}",
}
# With these the encoder has the other task's gradient and no more.
ALONE = ("equal", "uncertainty", "mgda", "features", "pta", "alternating")
DISTILLED = "\ndistillation: {teacher: self, start: 0, weight: 0.5, features: {weight: 0.3}}\n"


def session(make: Make, more: str) -> tuple[Session, Batch]:
    built = build_session(make(*PLAIN, more=f"\n{more}\n").recipe)
    built.model.train()
    return built, next(iter(built.train_loader))


@dataclass
class Started:
    """A session in its first step, and its first batch."""

    variant: str
    session: Session
    batch: Batch


@pytest.fixture(scope="module", params=VARIANTS)
def started(request: pytest.FixtureRequest, tiny: Make) -> Started:
    """Not to be stepped."""
    return Started(request.param, *session(tiny, VARIANTS[request.param]))


def without(batch: Batch, built: Session, *tasks: str) -> Batch:
    """The batch with nothing known of some tasks."""
    targets = dict(batch["targets"])
    for name in tasks:
        task = built.tasks[name]
        ignore = task.spec.ignore_index
        targets[task.target] = torch.full_like(targets[task.target], 0 if ignore is None else ignore)
        assert not task.known(targets[task.target]).any()
    return {**batch, "targets": targets}


def gradients(built: Session, batch: Batch) -> dict[str, Tensor]:
    """Every gradient that the optimizer follows, and no step."""
    _, total = built.forward(batch)
    assert total.isfinite()
    built.optimizer.zero_grad(set_to_none=True)
    built._backward(total)
    for part in built.parts:
        part.after_backward(built, batch)
    found = {name: p.grad for name, p in built.model.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in found.values())
    return found


def test_a_task_without_a_label_has_no_gradient(started: Started) -> None:
    built, batch = started.session, started.batch
    weights = {name: value.detach().clone() for name, value in built.model.named_parameters()}
    found = gradients(built, without(batch, built, "depth"))
    assert all(torch.equal(value, weights[name]) for name, value in built.model.named_parameters())
    assert not any(g.any() for name, g in found.items() if name.startswith("heads.depth"))
    assert any(g.any() for name, g in found.items() if name.startswith("heads.segmentation"))
    assert any(g.any() for name, g in found.items() if name.startswith("encoder"))
    if started.variant in ALONE:
        encoder = {name: p for name, p in built.model.encoder.named_parameters() if p.requires_grad}
        loss = built.forward_pass(batch).losses["segmentation"]
        alone = torch.autograd.grad(loss, list(encoder.values()), allow_unused=True)
        for name, gradient in zip(encoder, alone, strict=True):
            if gradient is not None:
                # float32: batch norm's sums may be taken in another order by a gradient of another layout
                torch.testing.assert_close(
                    found[f"encoder.{name}"], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
                )


def test_a_batch_without_any_label_has_no_gradient_at_all(started: Started) -> None:
    built, batch = started.session, started.batch
    found = gradients(built, without(batch, built, "depth", "segmentation"))
    assert not any(gradient.any() for gradient in found.values())


def test_distillation_teaches_a_task_without_a_label_and_nothing_else_does(tiny: Make) -> None:
    built, batch = session(tiny, DISTILLED)
    built.forward_pass(batch)  # makes the teacher, the network as it is now
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.mul_(1.1)
    found = gradients(built, without(batch, built, "depth"))
    built.forward(without(batch, built, "depth"))
    current = built.latest
    assert current is not None
    part = built.part(Distiller)
    assert part is not None and part._own is not None
    _, taught = part._own.look(current.image, current.outputs)
    term = 0.5 * distillation_loss(built.tasks["depth"], current.outputs["depth"], taught["depth"], 2.0)
    assert term > 0
    torch.testing.assert_close(current.losses["depth"], term)
    head = dict(built.model.heads["depth"].named_parameters())
    for name, gradient in zip(head, torch.autograd.grad(term, list(head.values())), strict=True):
        torch.testing.assert_close(
            found[f"heads.depth.{name}"], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
        )


def test_a_teachers_features_are_learned_with_and_without_labels(tiny: Make) -> None:
    built, batch = session(tiny, DISTILLED)
    penalties = []
    for one in (batch, without(batch, built, "depth"), without(batch, built, "depth", "segmentation")):
        built.forward(one)
        assert built.latest is not None
        penalties.append(built.latest.penalties[FEATURES].detach())
    assert penalties[0] > 0  # batch norm: the teacher has its running statistics
    assert torch.equal(penalties[0], penalties[1]) and torch.equal(penalties[0], penalties[2])


def test_pass_one_leaves_the_diagonals_of_a_task_without_a_label(tiny: Make) -> None:
    built, batch = session(tiny, VARIANTS["alternating"])
    diagonals = built.diagonals
    assert diagonals is not None
    before = {name: value.detach().clone() for name, value in diagonals.diagonals.items()}
    with diagonals.training():
        losses = diagonals.update(built, without(batch, built, "depth"))
    assert losses["depth"] == 0
    row = list(built.tasks).index("depth")
    moved = []
    for name, diagonal in diagonals.diagonals.items():
        assert torch.equal(diagonal[row], before[name][row])
        assert diagonal.isfinite().all()
        moved.append(not torch.equal(diagonal[1 - row], before[name][1 - row]))
    assert any(moved)  # not all: the task's output does not pass through every layer
