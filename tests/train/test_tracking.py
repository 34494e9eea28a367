"""What a run says: one line an epoch, a log that can be rewound, TensorBoard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from compactmtl.config import Resolved
from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ArtifactError
from compactmtl.tasks import TargetSpec, build_task
from compactmtl.train import Run
from compactmtl.train.tracking import EventLog, Tracker, epoch_line, format_metric, format_seconds


@pytest.fixture
def run(uninterrupted: tuple[Resolved, Run]) -> Run:
    return uninterrupted[1]


def test_an_epoch_is_one_line_with_every_task(run: Run) -> None:
    event = next(line for line in run.log() if line.get("epoch") == 2)
    line = epoch_line(event | {"seconds": 0.5}, run.tasks, of=12, images=14, best=True)
    assert line.startswith("epoch  2/12  loss ")
    for name, task in run.tasks.items():
        assert f"{name} {task.primary} " in line
    removable = event["sparsity"]["macs_removable"]
    assert f"MACs removable {removable:.1%}" in line
    assert line.endswith("0.5 s (28 images/s)  *")
    assert "\n" not in line


def test_metrics_are_shown_with_their_units(run: Run) -> None:
    assert format_metric(run.tasks["segmentation"], "miou", 0.4123) == "miou 41.2%"
    assert format_metric(run.tasks["depth"], "abs_err", 0.21) == "abs_err 0.21 m"
    normals = build_task("normals", TaskConfig(kind="normals"), TargetSpec("normals"))
    assert format_metric(normals, "mean_angle", 17.25) == "mean_angle 17.25°"
    assert format_metric(run.tasks["depth"], "rel_err", 0.07) == "rel_err 0.07"


def test_without_a_terminal_a_line_tells_every_half_minute_how_far_it_is(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr("compactmtl.train.tracking.time.perf_counter", lambda: float(next(now)))
    console = Console(file=io.StringIO(), width=200)
    with Tracker(tmp_path, run.tasks, 400, 0, console) as tracker:
        for step in range(1, 21):
            tracker.step(1, step, 12.5)
        for batch in range(20):
            tracker.phase(1, "validation", batch, 20)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert 6 <= len(lines) <= 30
    steps = [line for line in lines if "step" in line]
    assert re.fullmatch(r"epoch 1  step \d+/400  12 images/s  \d+ h \d+ min left", steps[-1])
    assert any(re.fullmatch(r"epoch 1  validation \d+/20", line) for line in lines)


def test_the_time_that_is_left_counts_this_sitting_alone(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("compactmtl.train.tracking.time.perf_counter", lambda: clock[0])
    console = Console(file=io.StringIO(), width=200)
    with Tracker(tmp_path, run.tasks, 1000, 900, console) as tracker:
        for step in range(901, 951):
            tracker.step(9, step, 1.0)
            clock[0] += 1.0
    assert "step 931/1000  1 images/s  67 s left" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_short_run_says_nothing_between_its_epochs(run: Run, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with Tracker(tmp_path, run.tasks, 10, 0, console) as tracker:
        for step in range(1, 11):
            tracker.step(1, step, 9.0)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_process_that_is_not_the_first_writes_and_shows_nothing(run: Run, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    (values, *_) = ({**event} for event in run.log() if event.pop("event") == "epoch")
    with Tracker(tmp_path, run.tasks, 10, 0, console, run.recipe, heard=False) as tracker:
        tracker.start({}, {})
        tracker.groups(["one"])
        tracker.step(1, 1, 9.0)
        tracker.phase(1, "validation", 0, 20)
        tracker.epoch(values, of=1, images=10, best=True)
        tracker.resume(2, 1)
        tracker.end(1, values["val"], values["val"], 1.0, 10)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (700, "12 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")]
)
def test_durations_are_told_in_units_that_tell(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_rewinding_drops_later_epochs_and_the_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    log.append("start", torch="2")
    for epoch in (1, 2, 3):
        log.append("epoch", epoch=epoch)
    log.append("end", best_epoch=3)
    log.rewind(1)
    log.append("resume", epoch=2)
    events = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(event["event"], event.get("epoch")) for event in events] == [
        ("start", None),
        ("epoch", 1),
        ("resume", 2),
    ]


def test_rewinding_cuts_half_a_line_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    log.append("epoch", epoch=1)
    whole = log.path.read_text()
    log.path.write_text(whole + '{"event": "epo')
    log.rewind(1)
    assert log.path.read_text() == whole
    log.path.write_text("{broken\n" + whole)
    with pytest.raises(ArtifactError, match=r"log\.jsonl:1"):
        log.rewind(1)


def test_a_terminal_gets_a_bar_and_the_same_lines(tmp_path: Path, run: Run) -> None:
    event = next(line for line in run.log() if line["event"] == "epoch")
    values = {key: value for key, value in event.items() if key != "event"}
    lines = {}
    for terminal in (True, False):
        out = io.StringIO()
        folder = tmp_path / str(terminal)
        folder.mkdir()
        console = Console(file=out, force_terminal=terminal, width=200)
        with Tracker(folder, run.tasks, 12, 0, console) as tracker:
            tracker.step(1, 4, 123.0)
            tracker.epoch(values, of=3, images=14, best=False)
            if terminal:
                assert tracker._bar is not None
        lines[terminal] = out.getvalue()
    line = epoch_line(values, run.tasks, of=3, images=14, best=False)
    assert line in lines[True]
    assert lines[False] == line + "\n"


def test_tensorboard_has_every_number_of_an_epoch(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"lr", "score", "train/loss", "train/losses/depth", "val/depth/abs_err"} <= tags
    assert "sparsity/macs_removable" in tags
    logged = [event["val"]["depth"]["abs_err"] for event in run.log() if event["event"] == "epoch"]
    written = [event.value for event in events.Scalars("val/depth/abs_err")]
    assert written == pytest.approx(logged, rel=1e-6)  # float32 there
