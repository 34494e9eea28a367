"""Small work takes one thread, and leaves the number as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from compactmtl.graph import ChannelGraph, cost
from compactmtl.graph.threads import one_thread
from compactmtl.surgery import compact


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_inside_it_is_one_and_afterwards_what_it_was() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_an_error_puts_the_number_back() -> None:
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert torch.get_num_threads() == 3


class Watching(nn.Module):
    """Notes how many threads it runs with."""

    seen: ClassVar[list[int]] = []  # of the class: a copy of the module writes into it too

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.after = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        Watching.seen.append(torch.get_num_threads())
        found: Tensor = self.after(self.layer(x).relu())
        return found


@pytest.mark.parametrize("work", [ChannelGraph.trace, cost, compact])
def test_tracing_counting_and_surgery_take_one(work: Callable[..., object]) -> None:
    Watching.seen.clear()
    work(Watching().eval(), (torch.randn(2, 3, 8, 8),))
    assert set(Watching.seen) == {1}
    assert torch.get_num_threads() == 3
