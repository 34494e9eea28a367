"""The memory layout of `train.channels_last: auto`: timed on copies, kept for later runs, and kept by a resumed run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from compactmtl.config import Recipe, Resolved
from compactmtl.errors import CompactWarning
from compactmtl.models import MultiTaskModel
from compactmtl.runs.identity import recipe_hash
from compactmtl.runs.model import fresh_model
from compactmtl.train import Run, TrainingInterrupted, train
from compactmtl.train import layout as layouts
from compactmtl.train.build import build_session
from compactmtl.train.layout import FEWEST_STEPS, Layout, choose, step_seconds
from compactmtl.train.random_state import random_state
from compactmtl.train.session import Session
from compactmtl.train.training_data import load_data

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]
Clock = Callable[[tuple[float, float]], list[int]]
FASTER, SLOWER, A_LITTLE = (1.0, 0.5), (0.5, 1.0), (1.0, 0.95)


@pytest.fixture
def recipe(tiny: Make) -> Recipe:
    return tiny().recipe


@pytest.fixture
def model(recipe: Recipe) -> MultiTaskModel:
    return fresh_model(recipe, load_data(recipe)[1])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compactmtl" / layouts.FOLDER


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """clock((NCHW, NHWC)) sets what a measurement gives; returns a list that grows by each measurement."""

    def set_to(seconds: tuple[float, float]) -> list[int]:
        calls: list[int] = []

        def measured(*_: object) -> tuple[float, float]:
            calls.append(1)
            return seconds

        monkeypatch.setattr(layouts, "step_seconds", measured)
        return calls

    return set_to


@pytest.mark.parametrize(("seconds", "last"), [(FASTER, True), (SLOWER, False), (A_LITTLE, False)])
def test_nhwc_is_taken_where_it_is_clearly_faster(
    recipe: Recipe, model: MultiTaskModel, clock: Clock, seconds: tuple[float, float], last: bool
) -> None:
    clock(seconds)
    assert choose(recipe, model, FEWEST_STEPS) == Layout(last, "timed", seconds)


def test_a_second_run_takes_the_first_one_s_answer(
    recipe: Recipe, model: MultiTaskModel, clock: Clock
) -> None:
    clock(FASTER)
    first = choose(recipe, model, FEWEST_STEPS)
    calls = clock(SLOWER)
    second = choose(recipe, model, FEWEST_STEPS)
    assert first == Layout(True, "timed", FASTER)
    assert second == Layout(True, "kept", FASTER)
    assert not calls


def test_another_batch_is_timed_anew(tiny: Make, model: MultiTaskModel, clock: Clock) -> None:
    calls = clock(FASTER)
    choose(tiny().recipe, model, FEWEST_STEPS)
    choose(tiny("data.batch_size=5").recipe, model, FEWEST_STEPS)
    assert len(calls) == 2


def test_of_two_processes_at_once_the_first_answer_is_everyone_s(
    recipe: Recipe, model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*_: object) -> tuple[float, float]:
        monkeypatch.setattr(layouts, "step_seconds", lambda *_: FASTER)
        choose(recipe, model, FEWEST_STEPS)
        return SLOWER

    monkeypatch.setattr(layouts, "step_seconds", overtaken)
    assert choose(recipe, model, FEWEST_STEPS) == Layout(True, "kept", FASTER)


def test_a_damaged_answer_is_measured_again(
    recipe: Recipe, model: MultiTaskModel, clock: Clock, cache: Path
) -> None:
    clock(FASTER)
    choose(recipe, model, FEWEST_STEPS)
    (file,) = cache.iterdir()
    file.write_text("{", "utf-8")
    clock(SLOWER)
    assert choose(recipe, model, FEWEST_STEPS) == Layout(False, "timed", SLOWER)
    assert json.loads(file.read_text("utf-8"))["channels_last"] is False


def test_an_answer_that_cannot_be_kept_is_a_warning(
    recipe: Recipe, model: MultiTaskModel, clock: Clock, cache: Path
) -> None:
    clock(FASTER)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be", "utf-8")
    with pytest.warns(CompactWarning, match="could not be kept"):
        assert choose(recipe, model, FEWEST_STEPS).channels_last


def test_a_dry_run_keeps_nothing(recipe: Recipe, model: MultiTaskModel, clock: Clock, cache: Path) -> None:
    clock(FASTER)
    assert choose(recipe, model, FEWEST_STEPS, keep=False).channels_last
    assert not cache.exists()


def test_nothing_is_timed_where_it_would_not_pay_or_the_recipe_says(
    tiny: Make, model: MultiTaskModel, clock: Clock
) -> None:
    calls = clock(FASTER)
    assert choose(tiny().recipe, model, FEWEST_STEPS - 1) == Layout(False, "short")
    for said in (True, False):
        stated = tiny(f"train.channels_last={str(said).lower()}").recipe
        assert choose(stated, model, FEWEST_STEPS) == Layout(said, "recipe")
    assert not calls


def test_timing_leaves_no_trace(tiny: Make) -> None:
    """Weights, running statistics, gradients and random generators are as before, dropout and all."""
    recipe = tiny("tasks.segmentation.head.dropout=0.5").recipe
    model = fresh_model(recipe, load_data(recipe)[1])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = random_state()["torch"]
    plain, last = step_seconds(recipe, model, rounds=1)
    assert plain > 0 and last > 0
    assert torch.equal(random_state()["torch"], before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)  # fmt: skip


def test_a_copy_is_timed_in_its_layout(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer's weight and the image are in NHWC in one copy, in NCHW in the other."""
    seen: set[tuple[bool, bool]] = set()
    model = fresh_model(recipe, load_data(recipe)[1])
    forward = MultiTaskModel.forward

    def look(self: MultiTaskModel, image: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = [p for p in self.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        weight = all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        seen.add((weight, image.is_contiguous(memory_format=torch.channels_last)))
        return forward(self, image)

    monkeypatch.setattr(MultiTaskModel, "forward", look)
    step_seconds(recipe, model, rounds=1)
    assert seen == {(False, False), (True, True)}


def test_a_session_trains_in_the_layout_that_was_chosen(recipe: Recipe) -> None:
    session = build_session(recipe, layout=lambda model, steps: Layout(True, "timed", FASTER))
    current = session.forward_pass(next(iter(session.train_loader)))
    assert current.image.is_contiguous(memory_format=torch.channels_last)
    assert not build_session(recipe).layout.channels_last


def test_old_runs_are_runs_of_the_recipe_with_the_new_default(tiny: Make) -> None:
    auto, false, true = (recipe_hash(tiny(f"train.channels_last={v}").recipe) for v in ("auto", "false", "true"))  # fmt: skip
    assert auto == false == recipe_hash(tiny().recipe)
    assert true != auto


@pytest.mark.slow
def test_a_resumed_run_keeps_its_layout_bit_equal(
    tmp_path: Path, tiny: Make, quiet: Quiet, clock: Clock, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(layouts, "FEWEST_STEPS", 1)
    clock(FASTER)
    console = quiet()
    whole = train(tiny(), tmp_path / "whole", console=console)
    assert "NHWC" in console.file.getvalue()  # type: ignore[attr-defined]
    assert whole.meta["channels_last"] is True
    assert whole.log()[0]["layout"] == {"channels_last": True, "origin": "timed", "seconds": list(FASTER)}
    update = Session.update

    def stop(self: Session, loss: torch.Tensor) -> None:
        update(self, loss)
        if self.position.step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", stop)
        with pytest.raises(TrainingInterrupted):
            train(tiny(), tmp_path / "run", console=quiet())
    for file in cache.iterdir():
        file.unlink()
    calls = clock(SLOWER)  # on a busy machine it would now be the other
    again = train(tiny(), tmp_path / "run", resume=True, console=quiet())
    assert not calls
    first, second = whole.load_model("last").state_dict(), again.load_model("last").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Run.open(tmp_path / "run").meta["channels_last"] is True


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_run_of_an_older_version_goes_on_as_it_was(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Its recipe.yaml says true or false, its meta.json nothing."""
    said = f"train.channels_last={str(before).lower()}"
    update = Session.update

    def stop(self: Session, loss: torch.Tensor) -> None:
        update(self, loss)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "update", stop)
        with pytest.raises(TrainingInterrupted):
            train(tiny(said), tmp_path / "run", console=quiet())
    meta = json.loads((tmp_path / "run" / "meta.json").read_text("utf-8"))
    del meta["channels_last"]
    (tmp_path / "run" / "meta.json").write_text(json.dumps(meta), "utf-8")
    found = []

    def note(self: Session, loss: torch.Tensor) -> None:
        found.append(self.layout)
        update(self, loss)

    monkeypatch.setattr(Session, "update", note)
    train(tiny(*([said] if before else [])), tmp_path / "run", resume=True, console=quiet())
    assert {one.channels_last for one in found} == {before}
