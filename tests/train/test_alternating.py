"""Alternating training: pass 1 moves each task's diagonals down its own loss and nothing else, and resumes to the bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.data.base import Batch
from compactmtl.overparam import contract, factorized_layers
from compactmtl.train import Run, TrainingInterrupted, compact_run, train
from compactmtl.train.alternating import DiagonalPass
from compactmtl.train.build import build_session
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]
ALTERNATING = "\noverparam: {training: alternating, alternating: {warmup: 0.2}}\n"


def first_batch(session: Session) -> Batch:
    session.train_loader.sampler.set_epoch(1)
    return next(iter(session.train_loader))


def snapshot(session: Session) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in session.model.named_parameters()}


def training(resolved: Resolved) -> Session:
    """A session whose every layer learns: timm's residual branches begin at zero."""
    built = build_session(resolved.recipe)
    built.model.train()
    for module in built.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return built


@pytest.fixture
def session(tiny: Make) -> Session:
    return training(tiny(more=ALTERNATING))


def test_pass_one_moves_the_diagonals_alone(session: Session) -> None:
    before = snapshot(session)
    assert session.diagonals is not None
    with session.diagonals.training():
        for _ in range(2):  # Adam's first step has the sign of the gradient, at a rate near 0
            session.diagonals.update(session, first_batch(session))
    after = snapshot(session)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.M" for name in factorized_layers(session.model)}
    assert session.position.step == 0


def test_each_tasks_diagonals_follow_its_own_loss(session: Session) -> None:
    """The gradient that pass 1 steps down, against a backward pass of that task's loss through everything."""
    diagonals = session.diagonals
    assert diagonals is not None
    with torch.no_grad():
        for name, diagonal in diagonals.diagonals.items():
            diagonal.copy_(
                1 + 0.1 * torch.randn(diagonal.shape, generator=torch.Generator().manual_seed(len(name)))
            )
    batch = first_batch(session)
    expected: dict[str, dict[str, Tensor]] = {}
    for task in session.tasks:
        with diagonals.training():
            torch.manual_seed(0)  # dropout
            losses, _ = session.forward(batch)
            session.model.zero_grad()
            losses[task].backward()  # type: ignore[no-untyped-call]
            expected[task] = {n: d.grad.clone() for n, d in diagonals.diagonals.items() if d.grad is not None}
    session.model.zero_grad()
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        seen.update({n: d.grad.clone() for n, d in diagonals.diagonals.items() if d.grad is not None})

    diagonals.optimizer.register_step_pre_hook(look)
    with diagonals.training():
        torch.manual_seed(0)
        diagonals.update(session, batch)
    for row, task in enumerate(session.tasks):
        for name, gradient in seen.items():
            torch.testing.assert_close(gradient[row], expected[task][name][row])


def test_pass_two_leaves_the_diagonals(session: Session) -> None:
    before = snapshot(session)
    _, total = session.forward(first_batch(session))
    session.update(total)
    after = snapshot(session)
    assert session.diagonals is not None
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same == name.endswith(".M"), name


def test_one_task_at_a_time_takes_turns(tiny: Make) -> None:
    built = training(tiny("overparam.alternating.tasks=one", more=ALTERNATING))
    diagonals = built.diagonals
    assert diagonals is not None
    for task in ("segmentation", "depth", "segmentation", "depth"):  # momentum moves no other task's either
        before = {name: d.detach().clone() for name, d in diagonals.diagonals.items()}
        assert diagonals.due() == [task]
        with diagonals.training():
            diagonals.update(built, first_batch(built))
        row = list(built.tasks).index(task)
        for name, diagonal in diagonals.diagonals.items():
            assert not torch.equal(diagonal[row], before[name][row])
            assert torch.equal(diagonal[1 - row], before[name][1 - row])


@pytest.mark.slow
def test_a_run_logs_pass_one_and_deploys_the_plain_layers(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    run = train(
        tiny("train.epochs=2", "overparam.alternating.start=0.5", more=ALTERNATING),
        tmp_path / "run",
        console=quiet(),
    )
    epochs = [event for event in run.log() if event["event"] == "epoch"]
    assert [sorted(event["diagonals"]) for event in epochs] == [[], ["depth", "segmentation"]]
    trained, plain = run.load_model(), run.load_plain()
    (image,) = run.example_inputs(2)
    with torch.no_grad():
        expected, found = trained(image), plain(image)
    assert not factorized_layers(plain)
    diagonals = [layer.diagonals for layer in factorized_layers(trained).values()]
    for task in expected:
        assert torch.equal(found[task], expected[task])
    assert any((m[0] != m[1]).any() for m in diagonals if m is not None)


# pass 1 has 4 steps an epoch: in its middle, at its end, and in pass 2
@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "call"),
    [
        (DiagonalPass, 2),
        (DiagonalPass, 8),
        (Session, 6),
    ],
)
def test_interrupted_and_resumed_is_bit_equal(
    tmp_path: Path,
    tiny: Make,
    quiet: Quiet,
    monkeypatch: pytest.MonkeyPatch,
    owner: type[Session] | type[DiagonalPass],
    call: int,
) -> None:
    resolved = tiny("train.epochs=2", more=ALTERNATING)
    whole = train(resolved, tmp_path / "whole", console=quiet())
    original: Callable[..., object] = owner.update
    calls = []

    def signalling(*arguments: object) -> object:
        result = original(*arguments)
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(owner, "update", signalling)
        with pytest.raises(TrainingInterrupted):
            train(resolved, tmp_path / "run", console=quiet())
    again = train(resolved, tmp_path / "run", resume=True, console=quiet())
    assert logged(again) == logged(whole)
    first, second = whole.load_model("last").state_dict(), again.load_model("last").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def logged(run: Run) -> list[str]:
    events = [event for event in run.log() if event["event"] == "epoch"]
    return [
        json.dumps({k: v for k, v in event.items() if k != "seconds"}, sort_keys=True) for event in events
    ]


@pytest.mark.slow
def test_a_weight_a_task_trains_and_contracts(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    run = train(
        tiny("train.epochs=1", more="\noverparam: {per_task: true, training: alternating}\n"),
        tmp_path / "run",
        console=quiet(),
    )
    plain = run.load_plain()
    (image,) = run.example_inputs(2)
    with torch.no_grad():
        expected, found = run.load_model()(image), plain(image)
    for task in expected:
        assert torch.equal(found[task], expected[task])
    factors = run.load_model().state_dict()
    one, other = (f"encoder.{task}.layer2.0.downsample.1" for task in ("segmentation", "depth"))
    assert torch.equal(factors[f"{one}.U"], factors[f"{other}.U"])
    assert not torch.equal(factors[f"{one}.M"], factors[f"{other}.M"])
    assert not torch.equal(
        plain.get_parameter("encoder.segmentation.layer2.0.downsample.1.weight"),
        plain.get_parameter("encoder.depth.layer2.0.downsample.1.weight"),
    )


def test_contraction_keeps_tied_parameters_apart(tiny: Make) -> None:
    model = build_session(tiny(more="\noverparam: {per_task: true}\n").recipe).model
    plain = contract(model)
    names = dict(plain.named_parameters(remove_duplicate=False))
    assert names["encoder.depth.bn1.weight"] is names["encoder.segmentation.bn1.weight"]


@pytest.mark.slow
def test_with_sparsity_balancing_and_half_precision(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    more = """
balancing: {name: pcgrad, at: shared_parameters}
overparam: {training: alternating}
sparsity: {selective: {mac_reduction: 0.3, start: 0.1, end: 0.6, every: 2, min_channels: 4}}
"""
    run = train(tiny("train.autocast=bfloat16", more=more), tmp_path / "run", console=quiet())
    assert run.log()[-2]["sparsity"]["macs_removable"] >= 0.3
    assert compact_run(run).report.macs_after < 0.75 * compact_run(run).report.macs_before
