"""Bounds and importance for each task in a recipe: what is written, that it costs no weight, that a resumed run is the same."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from compactmtl.artifacts.layout import IMPORTANCE, IMPORTANCE_FILE
from compactmtl.config import Resolved
from compactmtl.errors import ArtifactError
from compactmtl.report import build_report
from compactmtl.report.html import render
from compactmtl.sparsity.held_out import HeldOut
from compactmtl.train import Run, compact_run, train
from compactmtl.train import bounds as bounds_module
from compactmtl.train.bounds import held_out
from compactmtl.train.build import build_session
from compactmtl.train.dry_run import dry_run
from compactmtl.train.part import Training
from compactmtl.verify.accuracy import evaluate, torch_runner
from tests.support.interrupting import trained_in_two_parts
from tests.support.tiny_val import TinySplits

pytestmark = pytest.mark.slow  # each trains, seconds

Make = Callable[..., Resolved]
BOUNDED = """
sparsity:
  shrink_every: 1
  selective:
    mac_reduction: 0.4
    start: 0.1
    end: 0.7
    min_channels: 4
    tasks_every: 2
    checks: 4
    losses: {segmentation: 50 %, depth: 50 %}
"""
LOOSE = BOUNDED.replace("50 %", "99 %")
HELD = ["data.holdout=0.3", "tasks.segmentation.head.dropout=0", "train.epochs=5"]


def quiet() -> Console:
    return Console(quiet=True)


def epochs(run: Run) -> list[dict[str, Any]]:
    return [event for event in run.log() if event["event"] == "epoch"]


def test_a_run_writes_what_each_channel_is_worth_to_each_task(tiny: Make, tmp_path: Path) -> None:
    run = train(tiny(*HELD, more=LOOSE), tmp_path / "run", console=quiet())
    record = json.loads((run.path / IMPORTANCE / IMPORTANCE_FILE).read_text())
    assert record["version"] == 1 and record["tasks"] == ["segmentation", "depth"]
    for task in record["tasks"]:  # of what stays the shares are of all that stays together
        kept = [
            share
            for layer in record["layers"]
            for channel, share in enumerate(layer["shares"][task])
            if channel not in layer["removed"]
        ]
        assert sum(kept) == pytest.approx(1.0, abs=0.05)
    gone = sum(len(layer["removed"]) for layer in record["layers"])
    assert gone > 0
    last = epochs(run)[-1]["sparsity"]
    assert last["groups_zero"] == pytest.approx(gone / sum(layer["channels"] for layer in record["layers"]))
    assert last["macs_removable"] >= 0.4
    assert last["task_importance"]["looks"] == record["looks"] > 3
    assert record["bounds"]["checks"][0]["share"] == 0 and record["bounds"]["checks"][-1]["share"] == 1
    assert set(record["bounds"]["final"]) == {"segmentation", "depth"}
    assert record["bounds"]["stopped"] == record["bounds"]["checks"][-1]["step"]


def test_looking_moves_no_weight(tiny: Make, tmp_path: Path) -> None:
    section = "\nsparsity: {selective: {mac_reduction: 0.4, start: 0.1, end: 0.6, every: 1, min_channels: 4, tasks_every: N}}"
    runs = [
        train(tiny(more=section.replace("N", every)), tmp_path / every, console=quiet())
        for every in ("0", "1")
    ]
    assert not (runs[0].path / IMPORTANCE).exists() and (runs[1].path / IMPORTANCE).exists()
    one, other = (run.load_model("last").state_dict() for run in runs)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_bound_that_breaks_ends_it_and_training_says_so(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def worse(training: Training) -> dict[str, HeldOut]:
        """From the third check on as if depth were off by half as much again."""
        nonlocal asked
        asked += 1
        found = held_out(training)
        error = found["depth"].value * (1.5 if asked > 2 else 1.0)
        return {**found, "depth": HeldOut(error)}

    monkeypatch.setattr(bounds_module, "held_out", worse)
    console = Console(file=io.StringIO(), width=200)
    tight = BOUNDED.replace("depth: 50 %", "depth: 10 %").replace("segmentation: 50 %", "segmentation: 99 %")
    run = train(tiny(*HELD, "train.optimizer.lr=1e-9", more=tight), tmp_path / "run", console=console)
    last = epochs(run)[-1]["sparsity"]
    assert last["bounds"]["steps_back"] == 1 and 0 < last["macs_removable"] < 0.4
    assert [check["held"] for check in last["bounds"]["checks"]] == [True, True, False, False, False]
    assert last["bounds"]["gone"] == pytest.approx(last["macs_removable"] / 0.4)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert re.search(r"depth lost [\d.]+ %, at most 10 %", said) and "channels are put back" in said
    assert "no channel goes until it has recovered" in said and "the tasks' bounds ended it at" in said


@pytest.mark.parametrize("steps", [5, 9])
def test_a_resumed_run_is_bit_equal(tiny: Make, tmp_path: Path, steps: int) -> None:
    resolved = tiny(*HELD, "train.optimizer.lr=1e-3", more=BOUNDED.replace("50 %", "1 %"))
    whole = train(resolved, tmp_path / "whole", console=quiet())
    again = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), steps)
    one, other = (run.load_model("last").state_dict() for run in (whole, again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    records = [json.loads((run.path / IMPORTANCE / IMPORTANCE_FILE).read_text()) for run in (whole, again)]
    for record in records:
        record.pop("seconds")
        record["bounds"].pop("seconds")
    assert records[0] == records[1]


def test_what_is_watched_is_the_primary_metric_on_the_held_out_part(tiny: Make) -> None:
    session = build_session(tiny(*HELD, more=BOUNDED).recipe)
    before = torch.get_rng_state()
    modes = [module.training for module in session.model.modules()]
    found = held_out(session)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [module.training for module in session.model.modules()]
    assert len(session.data.splits["holdout"]) == session.samples["holdout"] > 0
    expected = evaluate(torch_runner(session.model), session.held_out, session.tasks)
    for name, task in session.tasks.items():
        assert found[name].value == pytest.approx(expected[name][task.primary])
        assert found[name].higher_is_better == task.metric_info[task.primary].higher_is_better
        assert len(found[name].parts) == 10


def test_a_dry_run_says_that_bounds_may_stop_it(tiny: Make) -> None:
    notes = dry_run(tiny(*HELD, more=BOUNDED).recipe).notes
    assert any(
        "segmentation 50 %, depth 50 %" in note and "stops short of its target" in note for note in notes
    )


def test_the_report_reads_it_and_refuses_a_changed_file(tiny: Make, tmp_path: Path) -> None:
    run = train(tiny(*HELD, more=LOOSE), tmp_path / "run", console=quiet())
    compacted = compact_run(run)
    assert compacted.report.mac_reduction >= 0.4
    report = build_report([run], None, TinySplits())
    view = report.runs[0]
    assert view.importance is not None and view.importance.bounds is not None
    page = render(report, ())
    assert "Channels and tasks" in page and "lost in the deployed network" in page
    assert page.count('class="strip"') == len(view.importance.layers)
    path = run.path / IMPORTANCE / IMPORTANCE_FILE
    path.write_text(path.read_text().replace("taylor", "fisher"))
    with pytest.raises(ArtifactError, match="damaged or was exchanged"):
        build_report([run], None, TinySplits())
