"""A loss that is not finite is found at its step, with its task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compactmtl.train.watch import CHECK_EVERY, LossWatch, NotFiniteError, check_weights


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
