"""Progressive compaction: the same result as without it, from a network that gets smaller, and over an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compactmtl.config import Resolved
from compactmtl.errors import ConfigError
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train.build import build_session
from compactmtl.train.session import Session

Make = Callable[..., Resolved]

SPARSE = """
sparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1, min_channels: 4}}
"""
# dropout draws other numbers where there are fewer channels
PLAIN = ["tasks.segmentation.head.dropout=0", "train.epochs=4", "train.clip=1.0"]


def steps(session: Session, epochs: int, shrink: bool) -> list[int]:
    """Train by hand; the parameters that are left after each epoch."""
    sizes = []
    for epoch in range(1, epochs + 1):
        session.position.epoch = epoch
        session.train_loader.sampler.set_epoch(epoch)
        session.model.train()
        for batch in session.train_loader:
            _, total = session.forward(batch)
            session.update(total)
        if shrink:
            session.end_epoch()
        sizes.append(sum(p.numel() for p in session.model.parameters()))
    return sizes


@pytest.mark.slow  # seconds
def test_it_changes_nothing_but_the_size(tiny: Make) -> None:
    recipe = tiny(*PLAIN, more=SPARSE).recipe
    whole, small = build_session(recipe), build_session(recipe)
    before = steps(whole, 4, shrink=False)
    after = steps(small, 4, shrink=True)
    assert len(set(before)) == 1
    assert after[-1] < 0.8 * before[-1]
    assert after == sorted(after, reverse=True)
    assert whole.sparsifier is not None and small.sparsifier is not None
    assert whole.sparsifier.report()["macs_removable"] == pytest.approx(
        small.sparsifier.report()["macs_removable"]
    )
    assert whole.sparsifier.report()["layers"] == pytest.approx(small.sparsifier.report()["layers"])
    back = small.weights()
    image = torch.randn(2, 3, 32, 48)
    restored = build_session(recipe).model
    restored.load_state_dict(dict(back))
    with torch.no_grad():
        for name, expected in whole.model.eval()(image).items():
            found = restored.eval()(image)[name]
            again = small.model.eval()(image)[name]
            # sixteen Adam steps on sums in another order
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
            torch.testing.assert_close(found, again, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
def test_a_run_goes_on_bit_equal_and_its_checkpoints_are_whole(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = tiny(*PLAIN, more=SPARSE)
    run = train(resolved, tmp_path / "whole", console=quiet())  # type: ignore[arg-type]
    sizes = [event["sparsity"]["parameters_removable"] for event in run.log() if event["event"] == "epoch"]
    assert sizes[-1] > 0.1
    dense = sum(p.numel() for p in run.load_model("last").parameters())
    assert sum(p.numel() for p in run.load_model("best").parameters()) == dense
    calls = 0

    def stop(self: Session, loss: torch.Tensor) -> None:
        nonlocal calls
        update(self, loss)
        calls += 1
        if calls == 14:  # in the last epoch, after channels went
            import signal

            signal.raise_signal(signal.SIGINT)

    update = Session.update
    monkeypatch.setattr(Session, "update", stop)
    with pytest.raises(TrainingInterrupted):
        train(resolved, tmp_path / "parts", console=quiet())  # type: ignore[arg-type]
    monkeypatch.undo()
    resumed = train(resolved, tmp_path / "parts", resume=True, console=quiet())  # type: ignore[arg-type]
    for name, value in run.load_model("last").state_dict().items():
        assert torch.equal(value, resumed.load_model("last").state_dict()[name]), name
    assert Run.open(tmp_path / "parts").best == run.best


@pytest.mark.slow  # seconds
def test_a_balancer_that_remembers_gradients_of_parameters(tiny: Make) -> None:
    recipe = tiny("balancing.name=db_mtl", "balancing.at=shared_parameters", more=SPARSE).recipe
    with pytest.raises(ConfigError, match=r"sparsity\.shrink_every: db_mtl"):
        build_session(recipe)


@pytest.mark.slow  # seconds
def test_a_lambda_shrinks_too(tiny: Make) -> None:
    more = "\nsparsity: {shrink_every: 1, warmup: 0, controller: {mac_reduction: 0.3, end: 0.5, every: 1, min_channels: 4}}\n"
    session = build_session(tiny(*PLAIN, more=more).recipe)
    sizes = steps(session, 3, shrink=True)
    assert sizes[-1] < sizes[0]
    assert session.sparsifier is not None
    assert session.sparsifier.report()["macs_removable"] >= 0.3


@pytest.mark.slow  # seconds
def test_a_penalty_on_the_encoders_gradient_goes_on_with_the_smaller_one(tiny: Make) -> None:
    more = SPARSE + "\nregularization: {weight_gradient: {strength: 0.1}}\n"
    session = build_session(tiny(*PLAIN, more=more).recipe)
    sizes = steps(session, 4, shrink=True)  # steps on after the third epoch's end, when channels went
    assert sizes[2] < sizes[1]
