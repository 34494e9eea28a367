"""A latency budget: milliseconds, a speedup or a share of the original network's time, by a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compactmtl.config.sparsity import LatencyBudget, SelectiveConfig
from compactmtl.errors import ConfigError
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from compactmtl.sparsity.target import Target

INPUT = (torch.zeros(1, 3, 8, 8),)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1))


def layer(outputs: int, inputs: int, step: int = 16) -> StaircaseLatency:
    """10 µs for each block of outputs and inputs."""
    each = Regime(step=step, constant=0, outputs=0, inputs=0, both=10e-3 / step**2)
    return StaircaseLatency(full=(outputs, inputs), align=step, aligned=each, ragged=each)


TABLE = LatencyTable(
    version=3,
    target="mine",
    image=(3, 8, 8),
    tasks=(),
    rest_ms=0.01,
    layers={"0": layer(64, 3), "2": layer(64, 64), "4": layer(4, 64)},
)
WHOLE = 0.01 + 0.04 + 0.16 + 0.04  # ms


def target(table: LatencyTable | None = None, /, **budget: Any) -> Target:
    config = SelectiveConfig(latency=LatencyBudget(target="mine", **budget), min_channels=1)
    return Target(channel_groups(network(), INPUT), config, 16, "sparsity.selective", table or TABLE)


@pytest.mark.parametrize(
    ("budget", "milliseconds"),
    [({"ms": 0.15}, 0.15), ({"speedup": 2.0}, WHOLE / 2), ({"reduction": 0.6}, WHOLE * 0.4)],
)
def test_the_choice_meets_the_budget(budget: dict[str, float], milliseconds: float) -> None:
    aim = target(**budget)
    assert aim.total == pytest.approx(WHOLE)
    keep = [~flags for flags in aim.by_magnitude()]
    assert aim.cost(keep) <= milliseconds
    assert all(int(flags.sum()) % 16 == 0 for flags in keep)


def test_what_buys_no_time_is_kept() -> None:
    """Of 64 channels in blocks of 16, a choice of 0.15 ms never leaves a block half empty."""
    keep = [~flags for flags in target(ms=0.15).by_magnitude()]
    assert sorted(int(flags.sum()) for flags in keep)[0] >= 16


def test_a_channel_costs_its_share_of_the_steps() -> None:
    """One channel less takes nothing away: a choice by that would never remove any."""
    aim = target(ms=0.15)
    first, second = aim.channel_costs(aim.groups.whole())
    # down to 16 of 64 channels: 40 to 10 µs of its own, and of the reader's 160 to 40 or 40 to 10
    assert first == pytest.approx((0.030 + 0.120) / 48)
    assert second == pytest.approx((0.120 + 0.030) / 48)


def test_a_kernel_that_is_slower_for_odd_counts_stops_no_choice() -> None:
    """One channel less makes the layer slower, as a runtime's kernel for blocks is not taken any more."""
    slow = Regime(step=1, both=1e-3)
    table = TABLE.model_copy(
        update={
            "layers": {name: one.model_copy(update={"ragged": slow}) for name, one in TABLE.layers.items()}
        }
    )
    config = SelectiveConfig(latency=LatencyBudget(target="mine", ms=0.15), min_channels=1)
    aim = Target(channel_groups(network(), INPUT), config, 16, "sparsity.selective", table)
    assert min(aim.channel_costs(aim.groups.whole())) > 0
    keep = [~flags for flags in aim.by_magnitude(aim.channel_costs(aim.groups.whole()))]
    assert aim.cost(keep) <= 0.15


def test_a_budget_above_the_whole_network_asks_for_nothing() -> None:
    with pytest.raises(
        ConfigError, match=r"latency.ms 0.3: the original model takes 0.25 ms, .* nothing to remove"
    ):
        target(ms=0.3)


def test_an_impossible_budget_says_the_least() -> None:
    with pytest.raises(
        ConfigError, match=r"latency.ms 0.01 cannot be reached: 0.04 ms of 0.25 ms is the least"
    ):
        target(ms=0.01)


def test_an_impossible_share_says_what_it_asks_for() -> None:
    with pytest.raises(
        ConfigError, match=r"0.04 ms of 0.25 ms is the least, and it asks for 0.0125 ms: with"
    ):
        target(speedup=20)
    # of the network as it was timed, which the sum of a table that was corrected near the budget misses
    timed = TABLE.model_copy(update={"whole_ms": 0.2})
    with pytest.raises(ConfigError, match=r"0.04 ms of 0.2 ms is the least, and it asks for 0.01 ms: with"):
        target(timed, speedup=20)


def test_a_budget_without_a_table_says_how_to_get_one() -> None:
    config = SelectiveConfig(latency=LatencyBudget(target="mine", ms=1.0))
    with pytest.raises(ConfigError, match="needs a table"):
        Target(channel_groups(network(), INPUT), config, 16, "sparsity.selective")


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"target": "mine"},
        {"ms": 5},
        {"target": "mine", "ms": 5, "speedup": 2},
        {"target": "mine", "ms": 0},
        {"target": "mine", "ms": -1},
        {"target": "mine", "ms": float("nan")},
        {"target": "mine", "speedup": 1},
        {"target": "mine", "reduction": 1},
    ],
)
def test_a_budget_that_says_nothing_or_too_much_is_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LatencyBudget(**budget)


def test_recipes_with_the_former_keys_are_read() -> None:
    former = SelectiveConfig.model_validate({"latency_reduction": 0.5, "latency_table": "table.json"})
    assert former.latency == LatencyBudget(reduction=0.5, table="table.json")
    assert (former.key, former.measure, former.amount) == ("latency.reduction", "latency", 0.5)
    assert SelectiveConfig.model_validate(
        {"mac_reduction": 0.5, "latency_reduction": None, "latency_table": None}
    ) == SelectiveConfig(mac_reduction=0.5)


def test_a_table_s_file_is_read(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.json")
    config = SelectiveConfig(
        latency=LatencyBudget(speedup=2, table=str(tmp_path / "table.json")), min_channels=1
    )
    aim = Target(channel_groups(network(), INPUT), config, 16, "sparsity.selective")
    assert aim.reduction == pytest.approx(0.5)
