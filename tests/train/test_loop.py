"""A run is repeatable to the bit, also when it was interrupted; it stops cleanly and loses nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from compactmtl.artifacts.lock import writing
from compactmtl.config import Resolved
from compactmtl.errors import ArtifactError, ConfigError, HeldError
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train.loop import Loop
from compactmtl.train.session import Session

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]


def weights(run: Run, checkpoint: str) -> dict[str, Tensor]:
    return load_file(run.path / "checkpoints" / checkpoint / "weights.safetensors")


def assert_equal(one: Run, other: Run) -> None:
    """Bit-equal weights and logs, but for the time taken."""
    for checkpoint in ("best", "last"):
        first, second = weights(one, checkpoint), weights(other, checkpoint)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert timeless(one) == timeless(other)
    assert one.best == other.best


def timeless(run: Run) -> list[dict[str, Any]]:
    events = [event for event in run.log() if event["event"] in ("epoch", "end")]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a real signal once, after an optimizer step."""
    update = Session.update

    def signalling(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if self.position.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Session, "update", signalling)


@pytest.mark.slow
def test_two_runs_are_bit_equal(tmp_path: Path, quiet: Quiet, uninterrupted: tuple[Resolved, Run]) -> None:
    resolved, whole = uninterrupted
    torch.randn(7)  # whatever the caller did with the global generators
    assert_equal(train(resolved, tmp_path / "run", console=quiet()), whole)


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    one = train(tiny("train.epochs=1"), tmp_path / "one", console=quiet())
    other = train(tiny("train.epochs=1", "seed=1"), tmp_path / "other", console=quiet())
    first, second = weights(one, "last"), weights(other, "last")
    assert not all(torch.equal(first[name], second[name]) for name in first)


# 4 steps an epoch: in mid-epoch before and after the target, at an epoch's last step, at the very last
@pytest.mark.parametrize(
    "step", [6, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 4, 11, 12))]
)
def test_interrupted_and_resumed_is_bit_equal(
    tmp_path: Path,
    quiet: Quiet,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Resolved, Run],
    step: int,
) -> None:
    resolved, whole = uninterrupted
    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_at(patched, step)
        with pytest.raises(TrainingInterrupted, match=f"after step {step} of 12; saved .*last") as caught:
            train(resolved, path, console=quiet())
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    torch.randn(7)  # another process would have other generators
    assert_equal(train(resolved, path, resume=True, console=quiet()), whole)


@pytest.mark.slow
def test_interrupted_twice_is_bit_equal(
    tmp_path: Path, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Resolved, Run]
) -> None:
    resolved, whole = uninterrupted
    for number, step in enumerate((5, 7)):
        with monkeypatch.context() as patched:
            interrupt_at(patched, step, signal.SIGINT)
            with pytest.raises(TrainingInterrupted):
                train(resolved, tmp_path / "run", resume=number > 0, console=quiet())
    assert_equal(train(resolved, tmp_path / "run", resume=True, console=quiet()), whole)


@pytest.mark.slow
def test_a_run_killed_after_an_epoch_resumes_bit_equal(
    tmp_path: Path, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Resolved, Run]
) -> None:
    """A kill leaves what was written: here an epoch in the log and a best that `last` knows nothing of."""
    resolved, whole = uninterrupted
    save = Loop._save_last
    saved: list[int] = []

    def die_second(self: Loop) -> None:
        saved.append(self.session.position.step)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save_last", die_second)
        with pytest.raises(KeyboardInterrupt):
            train(resolved, tmp_path / "run", console=quiet())
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"event": "epo')  # and half a line
    assert_equal(train(resolved, tmp_path / "run", resume=True, console=quiet()), whole)


@pytest.mark.slow
def test_an_interruption_in_validation_loses_no_step(
    tmp_path: Path, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Resolved, Run]
) -> None:
    resolved, whole = uninterrupted
    validate = Loop._validate

    def signalled(self: Loop) -> Mapping[str, Mapping[str, float]]:
        signal.raise_signal(signal.SIGINT)
        return validate(self)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_validate", signalled)
        with pytest.raises(TrainingInterrupted, match="in epoch 1 after step 4"):
            train(resolved, tmp_path / "run", console=quiet())
    assert_equal(train(resolved, tmp_path / "run", resume=True, console=quiet()), whole)


@pytest.mark.slow
def test_the_place_of_a_run_may_change_on_resuming(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(TrainingInterrupted):
            train(tiny("train.epochs=1"), tmp_path / "run", console=quiet())
    run = train(
        tiny("train.epochs=1", "data.cache=none", "description=moved"),
        tmp_path / "run",
        resume=True,
        console=quiet(),
    )
    assert run.finished
    assert run.recipe.data.cache == "none"


def test_resuming_with_another_recipe_names_what_differs(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(TrainingInterrupted):
            train(tiny(), tmp_path / "run", console=quiet())
    with pytest.raises(ConfigError, match=r"another recipe \(train\.optimizer\.lr: 0\.002 and 0\.1\)"):
        train(tiny("train.optimizer.lr=0.1"), tmp_path / "run", resume=True, console=quiet())


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        with monkeypatch.context() as patched:
            interrupt_at(patched, 2)
            with pytest.raises(TrainingInterrupted):
                train(tiny(f"seed={seed}"), tmp_path / str(seed), console=quiet())
    (tmp_path / "0" / "checkpoints").rename(tmp_path / "kept")
    (tmp_path / "1" / "checkpoints").rename(tmp_path / "0" / "checkpoints")
    with pytest.raises(ArtifactError, match="is a checkpoint of another recipe"):
        train(tiny(), tmp_path / "0", resume=True, console=quiet())


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    run = train(tiny("train.epochs=1"), tmp_path / "run", console=quiet())
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    console = quiet()
    train(tiny("train.epochs=1"), tmp_path / "run", resume=True, console=console)
    assert "finished: nothing to resume" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_resuming_a_run_that_is_not_there_names_those_that_are(
    tmp_path: Path, tiny: Make, quiet: Quiet
) -> None:
    train(tiny("train.epochs=1", "train.max_steps=1"), tmp_path / "there", console=quiet())
    with pytest.raises(ConfigError, match=r"there is no run \S+/run to resume") as caught:
        train(tiny("train.epochs=1"), tmp_path / "run", resume=True, console=quiet())
    assert "there" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_existing_run_is_not_touched_unless_asked(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    one = train(tiny("train.epochs=1"), tmp_path / "run", console=quiet())
    kept = weights(one, "best")
    with pytest.raises(ConfigError, match="holds a run already") as caught:
        train(tiny("seed=1"), tmp_path / "run", console=quiet())
    assert "--resume" in caught.value.hint and "--overwrite" in caught.value.hint
    assert all(torch.equal(value, kept[name]) for name, value in weights(one, "best").items())
    other = train(tiny("seed=1", "train.epochs=1"), tmp_path / "run", overwrite=True, console=quiet())
    assert other.recipe.seed == 1


@pytest.mark.slow
def test_a_run_that_is_being_written_says_by_whom_not_how_to_replace_it(
    tmp_path: Path, tiny: Make, quiet: Quiet
) -> None:
    run = tmp_path / "run"
    train(tiny("train.epochs=1"), run, console=quiet())
    with ThreadPoolExecutor(1) as other, writing(run, "export"):
        second = other.submit(train, tiny("train.epochs=1"), run, console=quiet())
        with pytest.raises(HeldError, match=r"being written by .*export"):
            second.result()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_run_is_never_deleted(
    tmp_path: Path, tiny: Make, quiet: Quiet, overwrite: bool
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not a run"):
        train(tiny(), folder, overwrite=overwrite, console=quiet())
    assert (folder / "chapter1.tex").read_text() == "years of work"


def test_a_run_that_fails_at_its_start_leaves_no_folder(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    with pytest.raises(ConfigError, match="timm has no model"):
        train(tiny("model.encoder.name=resnet19"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_max_steps_ends_the_run_and_shortens_the_schedules(
    tmp_path: Path, tiny: Make, quiet: Quiet, everything: str
) -> None:
    run = train(tiny("train.max_steps=6", more=everything), tmp_path / "run", console=quiet())
    epochs = [event for event in run.log() if event["event"] == "epoch"]
    assert [event["step"] for event in epochs] == [4, 6]
    assert epochs[-1]["lr"] < epochs[0]["lr"]
    assert epochs[-1]["sparsity"]["macs_removable"] >= 0.3
    assert run.finished


@pytest.mark.slow
def test_patience_stops_a_run_that_gets_no_better(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    monkeypatch.setattr("compactmtl.train.loop.mean_score", lambda *_: next(scores))
    run = train(tiny("train.epochs=5", "train.patience=2"), tmp_path / "run", console=quiet())
    assert [event["score"] for event in run.log() if event["event"] == "epoch"] == [0.5, 0.7, 0.6, 0.7]
    assert run.log()[-1]["best_epoch"] == 2


@pytest.mark.slow
def test_a_sparse_run_chooses_among_epochs_that_have_reached_the_target(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, everything: str
) -> None:
    scores = iter([0.9, 0.5, 0.6])  # the dense model of the first epoch is the best of all
    monkeypatch.setattr("compactmtl.train.loop.mean_score", lambda *_: next(scores))
    run = train(tiny("train.patience=1", more=everything), tmp_path / "run", console=quiet())
    assert run.log()[-1]["best_epoch"] == 3
    epochs = [event for event in run.log() if event["event"] == "epoch"]
    reached = {event["epoch"]: event["sparsity"]["macs_removable"] for event in epochs}
    assert reached[1] < 0.3 <= reached[2]


@pytest.mark.slow
def test_gain_is_logged_against_single_task_numbers(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    single = "\nsingle_task: {segmentation: {miou: 0.1, pixel_accuracy: 0.2}, depth: {abs_err: 3.0, rel_err: 0.5}}\n"
    run = train(tiny("train.epochs=1", more=single), tmp_path / "run", console=quiet())
    event = run.log()[1]
    val = event["val"]
    expected = (
        ((val["segmentation"]["miou"] - 0.1) / 0.1 + (val["segmentation"]["pixel_accuracy"] - 0.2) / 0.2) / 2
        - ((val["depth"]["abs_err"] - 3.0) / 3.0 + (val["depth"]["rel_err"] - 0.5) / 0.5) / 2
    ) / 2
    assert event["delta_m"] == pytest.approx(expected)
    assert event["score"] == event["delta_m"]


def test_single_task_numbers_of_an_unknown_task_stop_before_training(
    tmp_path: Path, tiny: Make, quiet: Quiet
) -> None:
    with pytest.raises(ConfigError, match="pose"):
        train(tiny(more="\nsingle_task: {pose: {error: 1.0}}\n"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_balancing_weights_really_learn(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    train(tiny("train.epochs=1", "balancing.name=uncertainty"), tmp_path / "run", console=quiet())
    state = torch.load(tmp_path / "run" / "checkpoints" / "last" / "state.pt", weights_only=True)
    assert (state["session"]["balancer"]["log_variances"] != 0).all()


@pytest.mark.parametrize("autocast", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_trains_float32_weights(
    tmp_path: Path, tiny: Make, quiet: Quiet, autocast: str
) -> None:
    run = train(
        tiny("train.epochs=1", f"train.autocast={autocast}", "train.channels_last=true"),
        tmp_path / "run",
        console=quiet(),
    )
    assert all(value.dtype != torch.float16 for value in weights(run, "best").values())


@pytest.mark.slow
def test_a_full_disk_names_the_path_and_keeps_the_last_checkpoint(
    tmp_path: Path,
    tiny: Make,
    quiet: Quiet,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Resolved, Run],
) -> None:
    """The disk is full from the second epoch's checkpoint on; with space again the run goes on, bit-equal."""
    resolved, whole = uninterrupted
    save, fsync = Loop._save_last, os.fsync

    def full(self: Loop) -> None:
        if self.session.position.step == 8:
            monkeypatch.setattr(os, "fsync", no_space)
        save(self)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save_last", full)
        with pytest.raises(OSError, match="No space left") as caught:
            train(resolved, tmp_path / "run", console=quiet())
    assert str(caught.value.filename).startswith(str(tmp_path / "run" / "checkpoints"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert_equal(train(resolved, tmp_path / "run", resume=True, console=quiet()), whole)


@pytest.mark.slow
def test_the_run_folder_says_where_it_came_from(tmp_path: Path, tiny: Make, quiet: Quiet) -> None:
    resolved: Resolved = tiny("train.epochs=1")
    run = train(resolved, tmp_path / "run", console=quiet())
    assert run.recipe == resolved.recipe
    meta = json.loads((run.path / "meta.json").read_text())
    assert meta["overrides"] == ["train.epochs"] and meta["seed"] == 0
    assert {"compactmtl", "torch", "timm", "python"} <= meta["versions"].keys()
    assert list((run.path / "tensorboard").iterdir())
