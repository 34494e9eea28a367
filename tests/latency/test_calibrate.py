"""A table that is wrong where a budget leads is set right there, by timing that network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compactmtl.config.sparsity import LatencyBudget, SelectiveConfig
from compactmtl.latency.calibrate import agree, cut_to, shortest
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Regime, StaircaseLatency
from compactmtl.sparsity.target import Target

INPUT = (torch.zeros(1, 3, 8, 8),)


def table(whole_ms: float | None = None) -> LatencyTable:
    each = Regime(step=1, constant=0, outputs=1e-3, inputs=0, both=0)
    layer = StaircaseLatency(full=(64, 3), align=1, aligned=each, ragged=each)
    return LatencyTable(
        version=3, target="mine", image=(3, 8, 8), tasks=(), whole_ms=whole_ms, layers={"0": layer}
    )


def ms(one: LatencyTable, width: int) -> float:
    return one.milliseconds({"0": (width, 3)})


def test_the_choice_of_the_table_comes_to_be_within_the_budget() -> None:
    """The network takes 30 % more than the table says; 30 ms/1000 are asked for."""
    widths = []

    def choose(current: LatencyTable) -> tuple[int, float]:
        width = max(width for width in range(1, 65) if ms(current, width) <= 0.030)
        widths.append(width)
        return width, ms(current, width)

    found = agree(table(), choose, lambda width, _predicted: 1.3e-3 * width)
    assert ms(found, 23) == pytest.approx(1.3e-3 * 23, rel=0.02)
    assert widths == [30, 23]


def test_what_cannot_be_measured_leaves_the_table_as_it_is() -> None:
    assert agree(table(), lambda one: (1, 1.0), lambda choice, predicted: None) == table()


@pytest.mark.parametrize(
    ("times", "ms", "timings"),
    [
        ([1.02], 1.02, 1),  # as the table says
        ([1.66, 1.01], 1.01, 2),  # other work ran evenly beside the first
        ([None, 1.66, 1.01], 1.01, 3),
        ([1.66, 1.65, 1.7], 1.65, 3),  # the table is wrong
        ([1.66, None, None], 1.66, 3),
        ([None, None, None], None, 3),
        ([0.5], 0.5, 1),  # other work makes nothing faster
    ],
)
def test_a_time_far_above_the_table_is_taken_again(
    times: list[float | None], ms: float | None, timings: int
) -> None:
    """One noisy timing would scale the whole table, and budgets that can be met would be refused by it."""
    left = iter(times)
    assert shortest(lambda: next(left), 1.0) == ms
    assert len(times) - len(list(left)) == timings


def test_a_speedup_is_of_the_network_as_it_was_timed() -> None:
    """Where the table is scaled near the budget, the whole network still takes what it took."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 1))
    each = Regime(step=1, constant=0, outputs=0, inputs=1e-3, both=0)
    one = table(whole_ms=0.128)
    last = StaircaseLatency(full=(4, 64), align=1, aligned=each, ragged=each)
    one = one.model_copy(update={"layers": {**one.layers, "2": last}})
    config = SelectiveConfig(latency=LatencyBudget(target="mine", speedup=2), min_channels=1)
    groups = channel_groups(model, INPUT)
    for factor in (1.0, 1.25):
        aim = Target(groups, config, 1, "sparsity.selective", one.scaled(factor))
        keep = [~flags for flags in aim.by_magnitude()]
        assert aim.cost(keep) <= 0.064
        assert int(keep[0].sum()) == int(32 / factor)


def test_a_cut_has_the_groups_that_are_kept_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = channel_groups(model, INPUT)
    (keep,) = groups.whole()
    keep[[1, 5]] = False
    small = cut_to(groups, [keep], model, INPUT)
    assert isinstance(small, nn.Sequential)
    cut, whole = small[0], model[0]
    assert isinstance(cut, nn.Conv2d) and isinstance(whole, nn.Conv2d)
    assert cut.out_channels == 6 and whole.out_channels == 8
    assert torch.equal(cut.weight, whole.weight[torch.from_numpy(keep)])


def test_a_block_that_starts_at_zero_is_in_the_cut() -> None:
    """As the last norm of a residual block: the whole network's time is what the table says, not that of its shortcut."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.conv, self.back = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
            self.last = nn.Conv2d(8, 2, 1)
            nn.init.zeros_(self.norm.weight)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.first(image)
            result: torch.Tensor = self.last(x + self.norm(self.back(self.conv(x).relu())))
            return result

    model = Block().eval()
    groups = channel_groups(model, INPUT)
    small = cut_to(groups, groups.whole(), model, INPUT)
    conv = small.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d) and conv.out_channels == 16
    assert not model.norm.weight.any()
