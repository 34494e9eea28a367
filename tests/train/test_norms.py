"""BatchNorm's statistics after a removal are those of the network that is left, and a resumed run has the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.train import TrainingInterrupted, train
from compactmtl.train.build import build_session
from compactmtl.train.norms import NormEstimates, train_mode
from compactmtl.train.session import Session

Make = Callable[..., Resolved]

SPARSE = """
sparsity:
  shrink_every: 1
  norm_batches: 2
  selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1, min_channels: 4, ramp: geometric}
"""
PLAIN = ["tasks.segmentation.head.dropout=0.2", "train.epochs=4"]


def trained(session: Session, epochs: int) -> Session:
    for epoch in range(1, epochs + 1):
        session.model.train()
        for batch in session.batches(epoch, 0, session.steps_per_epoch):
            _, total = session.forward(batch)
            session.update(total)
    return session


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.slow  # seconds
def test_they_are_the_mean_over_the_batches_and_nothing_else_changes(tiny: Make) -> None:
    session = trained(build_session(tiny(*PLAIN, more=SPARSE).recipe), 3)
    first = norms(session.model)[0]
    seen: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    modes = {name: (module.training) for name, module in session.model.named_modules()}
    random = torch.get_rng_state()
    session.before_validation()
    hook.remove()
    assert len(seen) == 2
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(
        first.running_mean, mean, rtol=1e-4, atol=1e-5
    )  # float32 sums in another order
    torch.testing.assert_close(first.running_var, var, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == {name: module.training for name, module in session.model.named_modules()}
    assert all(norm.momentum == 0.1 for norm in norms(session.model))
    after = session.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)
    session.before_validation()
    assert all(torch.equal(value, session.model.state_dict()[name]) for name, value in after.items())


@pytest.mark.slow  # seconds
def test_before_the_first_removal_they_are_left_alone(tiny: Make) -> None:
    session = build_session(tiny(*PLAIN, more=SPARSE).recipe)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    session.before_validation()
    assert session.part(NormEstimates) is not None
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())


@pytest.mark.slow  # seconds
def test_of_averaged_weights_it_is_the_average_that_is_estimated(tiny: Make) -> None:
    session = trained(build_session(tiny(*PLAIN, "train.ema={decay: 0.9}", more=SPARSE).recipe), 3)
    live = {name: value.clone() for name, value in session.model.state_dict().items()}
    before = {name: value.clone() for name, value in session.deployed.state_dict().items()}
    assert session.deployed is not session.model
    session.before_validation()
    after = session.deployed.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)
    assert all(torch.equal(value, live[name]) for name, value in session.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("train.ema={decay: 0.9}",)])
@pytest.mark.parametrize("moment", ["step", "validation"])
def test_a_resumed_run_is_bit_equal(
    moment: str,
    more: tuple[str, ...],
    tiny: Make,
    tmp_path: Path,
    quiet: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved = tiny(*PLAIN, *more, more=SPARSE)
    run = train(resolved, tmp_path / "whole", console=quiet())  # type: ignore[arg-type]
    calls, place, at = 0, ("update", 14), Session.update
    if moment == "validation":  # directly after the statistics of the third epoch were estimated
        place, at = ("before_validation", 3), Session.before_validation  # type: ignore[assignment]

    def stop(self: Session, *args: torch.Tensor) -> None:
        nonlocal calls
        at(self, *args)
        calls += 1
        if calls == place[1]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, place[0], stop)
        with pytest.raises(TrainingInterrupted):
            train(resolved, tmp_path / "parts", console=quiet())  # type: ignore[arg-type]
    resumed = train(resolved, tmp_path / "parts", resume=True, console=quiet())  # type: ignore[arg-type]
    for name, value in run.load_model("last").state_dict().items():
        assert torch.equal(value, resumed.load_model("last").state_dict()[name]), name
    assert resumed.best == run.best


@pytest.mark.slow
def test_frozen_statistics_stay_and_normalize(tiny: Make) -> None:
    session = build_session(tiny("train.batch_norm=frozen").recipe)
    train_mode(session.model, session.recipe)
    first = norms(session.model)[0]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = first.register_forward_hook(
        lambda _, inputs, output: seen.append(
            (inputs[0].detach(), output.detach().clone())
        )  # before an activation in place
    )
    batch = next(iter(session.train_loader))
    before = [norm.running_mean.clone() for norm in norms(session.model) if norm.running_mean is not None]
    _, total = session.forward(batch)
    session.update(total)
    hook.remove()
    after = [norm.running_mean for norm in norms(session.model) if norm.running_mean is not None]
    assert before and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    (given, found), *_ = seen
    expected = torch.nn.functional.batch_norm(
        given, torch.zeros_like(before[0]), torch.ones_like(before[0]), eps=first.eps
    )
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-6
    )  # weights are 1 and biases 0 at the start
    assert session.model.training


@pytest.mark.parametrize(
    ("key", "more"),
    [("sparsity.norm_batches", SPARSE), ("overparam.kind: repvgg", "\noverparam: {kind: repvgg}\n")],
)
def test_what_needs_the_batch_is_refused_beside_frozen_statistics(tiny: Make, key: str, more: str) -> None:
    with pytest.raises(ConfigError, match=f"train.batch_norm is frozen, and {key}"):
        build_session(tiny("train.batch_norm=frozen", more=more).recipe)
