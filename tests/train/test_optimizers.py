"""The learning rate over a run, and optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from compactmtl.config import Resolved
from compactmtl.config.recipe import OptimizerConfig, ScheduleConfig
from compactmtl.train import train
from compactmtl.train.optimizers import ONE_CYCLE_START, build_optimizer, build_schedule, rate

Make = Callable[..., Resolved]
Quiet = Callable[[], Console]
Name = Literal["one_cycle", "cosine", "constant"]
names = st.sampled_from(["one_cycle", "cosine", "constant"])


@given(
    name=names,
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    total=st.integers(1, 400),
)
def test_rates_rise_to_the_peak_and_never_rise_again(
    name: Name, warmup: float, final: float, total: int
) -> None:
    config = ScheduleConfig(name=name, warmup=warmup, final=final)
    rates = [rate(config, step, total) for step in range(total)]
    assert all(0 < value <= 1 for value in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= round(warmup * total)


def test_one_cycle_starts_at_its_share_and_peaks_after_the_warmup() -> None:
    config = ScheduleConfig(name="one_cycle", warmup=0.25)
    assert rate(config, 0, 100) == pytest.approx(ONE_CYCLE_START)
    assert rate(config, 25, 100) == 1.0
    assert rate(config, 99, 100) < 1e-3


def test_cosine_is_halfway_at_the_middle_of_its_fall() -> None:
    config = ScheduleConfig(name="cosine", warmup=0.2, final=0.1)
    assert rate(config, 60, 100) == pytest.approx(0.55)


def test_constant_stays_after_its_warmup() -> None:
    config = ScheduleConfig(name="constant", warmup=0.1)
    assert [rate(config, step, 100) for step in (10, 50, 99)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimizer_steps_at_the_scheduled_rate(name: Literal["adamw", "adam", "sgd"]) -> None:
    layer = nn.Linear(2, 1)
    optimizer = build_optimizer(
        OptimizerConfig(name=name, lr=0.5, weight_decay=0.0), [{"params": list(layer.parameters())}]
    )
    config = ScheduleConfig(name="cosine", warmup=0.5)
    schedule = build_schedule(config, optimizer, 10)
    for step in range(10):
        assert schedule.get_last_lr()[0] == pytest.approx(0.5 * rate(config, step, 10))
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()


def test_a_group_keeps_its_own_weight_decay() -> None:
    decayed, free = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(
        OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.5),
        [{"params": [decayed]}, {"params": [free], "weight_decay": 0.0}],
    )
    decayed.grad, free.grad = torch.zeros(3), torch.zeros(3)
    optimizer.step()
    assert torch.equal(decayed.detach(), torch.full((3,), 0.95))
    assert torch.equal(free.detach(), torch.ones(3))


@pytest.mark.parametrize("name", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
def test_other_optimizers_and_a_fixed_strength(tmp_path: Path, tiny: Make, quiet: Quiet, name: str) -> None:
    more = "\nsparsity: {strength: 10.0, warmup: 0.2}\n"
    run = train(
        tiny(f"train.optimizer.name={name}", "train.clip=1.0", "train.optimizer.lr=0.02", more=more),
        tmp_path / "run",
        console=quiet(),
    )
    report = run.log()[-2]["sparsity"]
    assert report["strength"] == 10.0
    assert report["groups_zero"] > 0 and report["macs_removable"] > 0
