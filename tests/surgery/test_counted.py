"""Attributes that a forward counts channels with follow surgery; numbers that are equal by coincidence do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.masking import compacted, kill


class Folded(nn.Module):
    """Splits its channels by an attribute; `area` is the number of positions, read by the forward too."""

    def __init__(self, width: int, area: int) -> None:
        super().__init__()
        self.width, self.area = width, area
        self.fold = nn.Conv1d(6, 2 * width, 1)
        self.out = nn.Conv1d(width, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fold(x).split([self.width, self.width], dim=1)
        position = torch.arange(self.area, dtype=x.dtype)
        y: Tensor = x + self.out(gate.sigmoid() * value * position)
        return y


class Twins(nn.Module):
    """Two halves with other widths, the second as wide as there are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Folded(12, 8), Folded(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_a_number_that_is_equal_by_coincidence_stays() -> None:
    torch.manual_seed(0)
    net = Twins()
    for half in (net.first, net.second):
        rows = [0, 2, 5]
        kill(half.fold, zero=[row + half.width for row in rows])
        kill(half.out, unread=rows)
        kill(half.fold, constant=rows)
    result = compacted(net, torch.randn(2, 6, 8, dtype=torch.float64))
    small = result.model
    assert isinstance(small, Twins)
    assert (small.first.width, small.second.width) == (9, 5)
    assert small.first.area == small.second.area == 8
