"""A loss that is not finite is found at its step, with its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from compactmtl.config import Resolved
from compactmtl.errors import TrainingError
from compactmtl.train import Run, train
from compactmtl.train.session import Session
from compactmtl.train.watch import CHECK_EVERY, LossWatch, NotFiniteError, check_weights

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]


def losses(depth: float, age: float) -> dict[str, Tensor]:
    return {"depth": torch.tensor(depth), "age": torch.tensor(age), "total": torch.tensor(depth + age)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_cpu_stops_at_the_bad_step_itself(bad: float) -> None:
    watch = LossWatch(["depth", "age", "total"], torch.device("cpu"), {})
    watch.note(1, losses(1.0, 2.0))
    with pytest.raises(NotFiniteError, match=r"the loss of task 'age' is (nan|inf) at step 2"):
        watch.note(2, losses(1.0, bad))


def test_a_gpu_is_looked_at_seldom_but_the_first_bad_step_is_named() -> None:
    watch = LossWatch(
        ["depth", "age", "total"], torch.device("cuda"), {}
    )  # only the policy; no GPU is touched
    for step in range(1, CHECK_EVERY):
        watch.note(step, losses(1.0, float("nan") if step >= 7 else 0.0))
    with pytest.raises(NotFiniteError, match="task 'age' is nan at step 7"):
        watch.look()


def test_a_balanced_loss_alone_can_be_the_bad_one() -> None:
    watch = LossWatch(["depth", "total"], torch.device("cpu"), {})
    with pytest.raises(NotFiniteError, match="the balanced loss is inf at step 3"):
        watch.note(3, {"depth": torch.tensor(1.0), "total": torch.tensor(float("inf"))})


def test_sums_go_on_from_an_earlier_sitting() -> None:
    watch = LossWatch(
        ["depth", "age", "total"], torch.device("cpu"), {"depth": 10.0, "age": 1.0, "total": 11.0}
    )
    watch.note(5, losses(1.0, 2.0))
    assert watch.sums == {"depth": 11.0, "age": 3.0, "total": 14.0}


def test_broken_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_weights(model, 1)
    model.get_buffer("1.running_var")[0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"tensor 1\.running_var is not finite after step 4"):
        check_weights(model, 4)


def poison(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the depth loss NaN at one step, as a learning rate that is too high does."""
    forward = Session.forward

    def poisoned(self: Session, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        losses, total = forward(self, batch)
        if self.position.step + 1 == at:
            losses["depth"] = losses["depth"] * float("nan")
        return losses, total

    monkeypatch.setattr(Session, "forward", poisoned)


@pytest.mark.slow
def test_a_nan_loss_names_step_task_and_the_last_good_checkpoint(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=6)
    with pytest.raises(TrainingError) as caught:
        train(tiny(), tmp_path / "run", console=quiet())
    last = tmp_path / "run" / "checkpoints" / "last"
    assert caught.value.message == (
        f"the loss of task 'depth' is nan at step 6 (epoch 2); the last good checkpoint is {last}"
    )
    assert caught.value.exit_code == 2
    assert all(torch.isfinite(value).all() for value in load_file(last / "weights.safetensors").values())
    assert Run.open(tmp_path / "run").best  # and the best one is of use


def test_a_nan_in_the_first_epoch_says_that_there_is_no_checkpoint(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=1)
    with pytest.raises(TrainingError, match=r"at step 1 .*there is no checkpoint yet"):
        train(tiny(), tmp_path / "run", console=quiet())


@pytest.mark.slow
def test_weights_that_break_at_the_last_step_are_not_saved(
    tmp_path: Path, tiny: Make, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient that is not finite shows in no loss any more when it is the epoch's last."""
    update = Session.update

    def breaking(self: Session, loss: Tensor) -> None:
        update(self, loss)
        if self.position.step == 8:
            next(self.model.parameters()).data.view(-1)[0] = float("inf")

    monkeypatch.setattr(Session, "update", breaking)
    with pytest.raises(TrainingError, match=r"tensor encoder\.\S+ is not finite after step 8"):
        train(tiny(), tmp_path / "run", console=quiet())
    saved = load_file(tmp_path / "run" / "checkpoints" / "last" / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())
