"""The average of the weights: what it is, what is dead in it, and that it is validated, saved, shrunk and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compactmtl.config import Resolved
from compactmtl.errors import ArtifactError
from compactmtl.overparam import contract
from compactmtl.runs import compact_run
from compactmtl.runs.checkpoint import load_state
from compactmtl.train import Run, train
from compactmtl.train.average import WeightAverage
from compactmtl.train.build import build_session
from compactmtl.train.session import Session
from compactmtl.verify.accuracy import evaluate, torch_runner
from tests.support.interrupting import trained_in_two_parts

Make = Callable[..., Resolved]

SPARSE = """
sparsity: {shrink_every: 1, selective: {mac_reduction: 0.4, start: 0.1, end: 0.5, every: 1, min_channels: 4}}
"""
CONTROLLED = """
sparsity: {warmup: 0, controller: {mac_reduction: 0.3, end: 0.5, every: 1, min_channels: 4}}
"""


def average_of(session: Session) -> WeightAverage:
    part = session.part(WeightAverage)
    assert part is not None
    return part


def step(session: Session, factor: float = 1.0) -> None:
    session.model.train()
    _, total = session.forward(next(iter(session.train_loader)))
    session.update(total * factor)


def epoch(session: Session, number: int, *, end: bool = True) -> None:
    session.position.epoch = number
    session.train_loader.sampler.set_epoch(number)
    session.model.train()
    for batch in session.train_loader:
        session.update(session.forward(batch)[1])
    if end:
        session.end_epoch()


def test_it_is_the_exponential_mean_of_weights_and_running_statistics(tiny: Make) -> None:
    session = build_session(tiny("train.ema={decay: 0.5, warmup: false}").recipe)
    part = average_of(session)
    expected: dict[str, Tensor] = {}
    for number in range(4):
        decay = part.decay
        assert decay == (0.0 if number == 0 else 0.5)
        step(session)
        for name, value in session.model.state_dict().items():
            if not value.is_floating_point():
                expected[name] = value.clone()
            elif name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    found = part.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # a sum of two products against a + w(b − a), in float32
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert int(found["encoder.bn1.num_batches_tracked"]) == 4
    assert not torch.equal(
        found["encoder.bn1.running_mean"], session.model.state_dict()["encoder.bn1.running_mean"]
    )


def test_the_decay_rises_so_that_a_short_run_forgets_its_beginning(tiny: Make) -> None:
    part = average_of(build_session(tiny("train.ema={decay: 0.99}").recipe))
    decays = []
    for part._updates in (0, 10, 300, 100_000):
        decays.append(part.decay)
    assert decays == pytest.approx([0.0, 1 - 11 ** (-2 / 3), 1 - 301 ** (-2 / 3), 0.99])


def test_a_step_that_the_scaler_skips_leaves_the_average(tiny: Make) -> None:
    session = build_session(tiny("train.ema={}", "train.autocast=float16").recipe)
    step(session)
    before = {name: value.clone() for name, value in average_of(session).model.state_dict().items()}
    decay = average_of(session).decay
    step(session, factor=float("inf"))
    assert average_of(session).decay == decay
    for name, value in average_of(session).model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("more", [SPARSE, CONTROLLED])
@pytest.mark.slow  # seconds
def test_what_is_dead_in_the_model_is_exactly_dead_in_the_average(tiny: Make, more: str) -> None:
    recipe = tiny("train.ema={decay: 0.9, warmup: false}", "train.epochs=4", more=more).recipe
    session = build_session(recipe)
    assert session.sparsifier is not None
    for number in range(1, 4):
        epoch(session, number, end=False)
        groups = session.sparsifier.groups
        dead = session.sparsifier.dead()
        moved = 0.0
        for family, flags in zip(groups, dead, strict=True):
            for member in family.members:
                if not flags.any():
                    continue
                average = average_of(session).model.get_parameter(member.parameter)
                gone = average.movedim(member.dim, 0)[member.indices[flags].ravel()]
                live = session.model.get_parameter(member.parameter).movedim(member.dim, 0)
                if not live[member.indices[flags].ravel()].any():
                    assert not gone.any(), member.parameter
                moved += float((average - session.model.get_parameter(member.parameter)).abs().sum().detach())
    assert session.sparsifier.eligible
    assert sum(int(flags.sum()) for flags in dead) > 0
    assert moved > 0  # of the others it is an average and not the model


@pytest.mark.slow  # seconds
def test_it_begins_anew_when_the_target_is_reached(tiny: Make) -> None:
    session = build_session(
        tiny("train.ema={decay: 0.999, warmup: false}", "train.epochs=4", more=CONTROLLED).recipe
    )
    assert session.sparsifier is not None
    while not session.sparsifier.eligible:
        step(session)
        if session.position.step == 4:
            assert average_of(session).decay == 0.999
    for name, value in session.model.named_parameters():
        assert torch.equal(average_of(session).model.get_parameter(name), value), name
    step(session)
    head = "heads.depth.last.weight"
    assert not torch.equal(average_of(session).model.get_parameter(head), session.model.get_parameter(head))


@pytest.mark.slow  # seconds
def test_physical_shrinking_changes_nothing_of_the_averages_function(tiny: Make) -> None:
    session = build_session(tiny("train.ema={decay: 0.9}", "train.epochs=4", more=SPARSE).recipe)
    image = torch.randn(2, 3, 32, 48)
    sizes = [sum(p.numel() for p in session.deployed.parameters())]
    for number in range(1, 4):
        epoch(session, number, end=False)
        before = {name: output.detach().clone() for name, output in session.deployed.eval()(image).items()}
        session.end_epoch()
        sizes.append(sum(p.numel() for p in session.deployed.parameters()))
        for name, output in session.deployed.eval()(image).items():
            # sums over fewer terms, in another order
            torch.testing.assert_close(
                output, before[name], rtol=0, atol=1e-5 * float(before[name].abs().max())
            )
        assert [p.shape for p in session.deployed.parameters()] == [
            p.shape for p in session.model.parameters()
        ]
    assert sizes[-1] < sizes[0]


def test_the_average_of_factors_contracts_like_the_model(tiny: Make) -> None:
    session = build_session(tiny("train.ema={decay: 0.5}", "overparam.kind=svd").recipe)
    image = torch.randn(2, 3, 32, 48)
    run = torch_runner(session.deployed)
    run(image)  # an evaluation between steps leaves nothing behind that a later one would read
    for _ in range(3):
        step(session)
    found = run(image)
    with torch.no_grad():
        expected = contract(session.deployed).eval()(image)
    for name, output in expected.items():
        torch.testing.assert_close(found[name], output, rtol=0, atol=1e-4 * float(output.abs().max()))


@pytest.mark.slow  # trains
def test_the_average_is_validated_saved_as_best_and_compacted_and_last_goes_on(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object]
) -> None:
    resolved = tiny("train.ema={decay: 0.9}", "train.epochs=4", more=SPARSE)
    run = train(resolved, tmp_path / "run", console=quiet())  # type: ignore[arg-type]
    state = load_state(run.path / "checkpoints" / "last")
    assert state is not None
    last, average = run.load_model("last").state_dict(), state["session"]["ema"]["average"]
    assert any(
        not torch.equal(last[name], value)
        for name, value in average.items()
        if last[name].shape == value.shape
    )
    # the metrics in the log are those of the weights in best, measured again
    session = build_session(resolved.recipe)
    metrics = evaluate(torch_runner(run.load_model("best")), session.select_loader, session.tasks)
    for task, values in run.best.items():
        for metric, value in values.items():
            # its channels are back as zeros: sums in another order
            assert metrics[task][metric] == pytest.approx(value, rel=1e-3, abs=1e-4), (task, metric)
    report = compact_run(run).report
    removable = [e["sparsity"]["macs_removable"] for e in run.log() if e["event"] == "epoch"][-1]
    assert 1 - report.macs_after / report.macs_before >= removable - 1e-6


@pytest.mark.slow  # trains twice
@pytest.mark.parametrize("more", [SPARSE, "\noverparam: {kind: svd, training: alternating}\n"])
def test_a_resumed_run_has_the_same_average(
    tiny: Make, tmp_path: Path, quiet: Callable[[], object], monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    resolved = tiny("train.ema={decay: 0.9}", "train.epochs=4", more=more)
    run = train(resolved, tmp_path / "whole", console=quiet())  # type: ignore[arg-type]
    # in the last epoch, after channels went
    resumed = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), 14)  # type: ignore[arg-type]
    assert Run.open(tmp_path / "parts").best == run.best
    mine, theirs = (load_state(one.path / "checkpoints" / "last") for one in (run, resumed))
    assert mine is not None and theirs is not None
    for name, value in mine["session"]["ema"]["average"].items():
        assert torch.equal(value, theirs["session"]["ema"]["average"][name]), name
    for name, value in run.load_model("best").state_dict().items():
        assert torch.equal(value, resumed.load_model("best").state_dict()[name]), name


def test_the_average_of_another_network_is_refused(tiny: Make) -> None:
    session = build_session(tiny("train.ema={}").recipe)
    state = average_of(session).state_dict()
    state["average"] = {name: value for name, value in state["average"].items() if "bn1" not in name}
    with pytest.raises(ArtifactError, match="average of the weights is of another network"):
        average_of(session).load_state_dict(session, state)
