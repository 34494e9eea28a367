"""Channel counts follow the measured staircase, layer by layer: what is free is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactmtl.config.sparsity import LatencyBudget, SelectiveConfig
from compactmtl.errors import ConfigError
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import LayerLatency, Regime, StaircaseLatency
from compactmtl.sparsity.staircase import LEAST, MOST, family_steps
from compactmtl.sparsity.target import Target

INPUT = (torch.zeros(1, 3, 8, 8),)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1))


def stairs(outputs: int, inputs: int, step: int, ms: float = 1e-4) -> StaircaseLatency:
    each = Regime(step=step, both=ms)
    return StaircaseLatency(full=(outputs, inputs), align=step, aligned=each, ragged=each)


def table(first: StaircaseLatency, second: StaircaseLatency, last: StaircaseLatency) -> LatencyTable:
    return LatencyTable(
        version=3, target="mine", image=(3, 8, 8), tasks=(), layers={"0": first, "2": second, "4": last}
    )


def test_each_family_has_the_step_of_its_own_layers() -> None:
    """The last layer takes most of the second family's time."""
    groups = channel_groups(network(), INPUT)
    mine = table(stairs(64, 3, 8, 1e-2), stairs(64, 64, 8), stairs(4, 64, 16, 1e-2))
    steps = {family.name: step for family, step in zip(groups, family_steps(groups, mine, 1), strict=True)}
    assert [steps[name] for name in sorted(steps)] == [8, 16]


def test_a_kernel_that_takes_any_count_has_the_least_step_and_a_cache_is_no_step() -> None:
    groups = channel_groups(network(), INPUT)
    fine = table(stairs(64, 3, 1), stairs(64, 64, 1), stairs(4, 64, 1))
    coarse = table(stairs(64, 3, 64), stairs(64, 64, 64), stairs(4, 64, 64))
    assert family_steps(groups, fine, 16) == [LEAST, LEAST]
    assert family_steps(groups, coarse, 16) == [MOST, MOST]


def test_counts_that_are_clearly_slower_are_avoided() -> None:
    even, odd = Regime(step=1, both=1e-4), Regime(step=1, both=2e-4)
    layer = StaircaseLatency(full=(64, 64), align=8, aligned=even, ragged=odd)
    assert layer.step == 8
    assert layer.model_copy(update={"ragged": Regime(step=4, both=1.01e-4)}).step == 4


def test_a_family_s_step_is_that_of_the_side_that_it_changes() -> None:
    """The outputs of a layer in steps of 16, its inputs in steps of 4."""
    each = Regime(step=16, inputs_step=4, both=1e-4)
    layer = StaircaseLatency(full=(64, 64), align=16, inputs_align=4, aligned=each, ragged=each)
    assert layer.step_of(outputs=True, inputs=False) == layer.step == 16
    assert layer.step_of(outputs=False, inputs=True) == 4
    slow = layer.model_copy(update={"inputs_align": 8, "ragged": Regime(step=16, inputs_step=4, both=3e-4)})
    assert slow.step_of(outputs=False, inputs=True) == 8
    padded = slow.model_copy(update={"aligned": Regime(step=16, inputs_step=16, both=1e-4)})
    assert padded.step_of(outputs=False, inputs=True) == 16  # 8 and 16 cost the same
    shared = layer.model_copy(update={"align": 1, "inputs_align": None})  # one kernel for all counts
    assert shared.step_of(outputs=True, inputs=False) == 16
    assert shared.step_of(outputs=False, inputs=True) == 4
    free = Regime(step=1, both=1e-9)
    groups = channel_groups(network(), INPUT)
    first = StaircaseLatency(full=(64, 3), align=1, inputs_align=1, aligned=free, ragged=free)
    last = StaircaseLatency(full=(4, 64), align=1, inputs_align=1, aligned=free, ragged=free)
    assert family_steps(groups, table(first, layer, last), 32) == [4, 16]


def test_a_table_on_a_grid_says_nothing_of_steps() -> None:
    layers: dict[str, LayerLatency | StaircaseLatency] = {
        "0": LayerLatency(outputs=(1, 64), inputs=(1, 3), ms=((0.0, 0.0), (0.1, 0.1))),
        "2": LayerLatency(outputs=(1, 64), inputs=(1, 64), ms=((0.0, 0.0), (0.1, 0.1))),
        "4": LayerLatency(outputs=(1, 4), inputs=(1, 64), ms=((0.0, 0.0), (0.1, 0.1))),
    }
    groups = channel_groups(network(), INPUT)
    assert family_steps(groups, LatencyTable(target="mine", layers=layers), 16) == [16, 16]


def test_a_choice_keeps_what_is_free_in_each_family() -> None:
    """A budget between two stairs: every count is a whole number of its own stairs."""
    groups = channel_groups(network(), INPUT)
    mine = table(stairs(64, 3, 8), stairs(64, 64, 8), stairs(4, 64, 16, 1e-2))
    config = SelectiveConfig(latency=LatencyBudget(target="mine", reduction=0.5), min_channels=1)
    steps = family_steps(groups, mine, 1)
    aim = Target(groups, config, steps, "sparsity.selective", mine)
    keep = [~flags for flags in aim.by_magnitude()]
    assert all(int(flags.sum()) % step == 0 for flags, step in zip(keep, steps, strict=True))
    assert aim.cost(keep) <= 0.5 * aim.total


def test_an_impossible_budget_names_the_steps() -> None:
    groups = channel_groups(network(), INPUT)
    mine = table(stairs(64, 3, 8), stairs(64, 64, 8), stairs(4, 64, 16))
    config = SelectiveConfig(latency=LatencyBudget(target="mine", speedup=1e6), min_channels=1)
    with pytest.raises(ConfigError, match="multiples of 8 to 16"):
        Target(groups, config, [8, 16], "sparsity.selective", mine)
