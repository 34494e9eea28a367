"""Training that is watched: told every epoch but the last, stopped by what the watcher raises, resumed from there."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from compactmtl.config import Resolved
from compactmtl.graph import cost
from compactmtl.runs.model import example_inputs, plain_form
from compactmtl.train import GivenUp, Run, expected_cost, train
from compactmtl.train.build import build_session


@pytest.mark.slow
def test_a_watcher_is_told_each_epoch_but_the_last_and_may_stop(
    tiny: Callable[..., Resolved], tmp_path: Path
) -> None:
    told: list[tuple[int, float]] = []

    def watch(epoch: int, score: float) -> None:
        told.append((epoch, score))
        if len(told) == 2:
            raise GivenUp("enough")

    quiet = Console(file=io.StringIO())
    resolved = tiny("train.epochs=4")
    with pytest.raises(GivenUp, match="enough"):
        train(resolved, tmp_path / "run", console=quiet, watch=watch)
    run = Run.open(tmp_path / "run")
    assert not run.finished and (run.path / "checkpoints" / "last").exists()
    run = train(resolved, run.path, resume=True, console=quiet, watch=watch)
    scores = [(event["epoch"], event["score"]) for event in run.log() if event["event"] == "epoch"]
    assert told == scores[:3] and len(scores) == 4

    whole = train(resolved, tmp_path / "whole", console=quiet)
    assert [event["score"] for event in whole.log() if event["event"] == "epoch"] == [s for _, s in scores]


@pytest.mark.slow
def test_what_a_network_will_cost_is_known_before_unless_a_strength_decides_it(
    tiny: Callable[..., Resolved],
) -> None:
    dense = tiny().recipe
    session = build_session(dense)
    whole = cost(plain_form(dense, session.model), example_inputs(dense))
    assert expected_cost(dense) == (whole.macs, whole.parameters)
    half = expected_cost(tiny(more="sparsity: {selective: {mac_reduction: 0.4, min_channels: 4}}").recipe)
    assert half is not None and 0.5 < half[0] / whole.macs < 0.7 and half[1] < whole.parameters
    assert expected_cost(tiny(more="sparsity: {strength: 1e-3}").recipe) is None
