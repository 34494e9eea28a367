"""Sums over the parts of a batch that pass one after the other, each with the graph of its own part alone.

What is summed over a batch is then known before any part's graph is there: a first pass over all parts, of which no graph is
kept, adds it up. When a part passes again, each sum has the value that all parts have together, and of its gradient the part's
own share; the shares of all parts add up to the gradient of the whole, whatever is made of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TINY = 1e-12


class Sums:
    """The sums of a batch, by the order in which each part asks for them.

    A sum that depends on others, such as a norm of gradients, is right once those were known for a whole pass.
    """

    def __init__(self) -> None:
        self._known: list[Tensor] = []  # of all parts, by the pass before
        self._found: list[Tensor] = []  # of the parts that passed so far
        self._place = 0
        self._last = False

    def begin(self) -> None:
        """A pass over all parts begins."""
        self._found = []

    def learn(self) -> None:
        """A pass over all parts has ended: its sums are those of the batch from now on."""
        self._known = self._found

    @contextmanager
    def part(self, *, last: bool = False) -> Iterator[None]:
        """Within, sums are those of all parts: as the pass before knew them; of the `last` part of a pass that learns them
        those that were found in this one.
        """
        global _open
        before, _open = _open, self
        self._place, self._last = 0, last
        try:
            yield
        finally:
            _open = before

    def whole(self, mine: Tensor) -> Tensor:
        """This part's share of the next sum as the sum of all: the value of all, the gradient of this part."""
        place, own = self._place, mine.detach()
        self._place += 1
        if place == len(self._found):
            self._found.append(torch.zeros_like(own))
        earlier = self._found[place]
        self._found[place] = earlier + own
        return mine + (self._known[place] - own if self._known and not self._last else earlier)

    def apart(self) -> float:
        """How far the sums of the last pass are from those that are known, as the largest share of a sum."""
        shares = [
            float((found - known).norm() / known.norm().clamp_min(TINY))
            for found, known in zip(self._found, self._known, strict=True)
        ]
        return max(shares, default=0.0)


_open: Sums | None = None


def in_parts() -> bool:
    """Whether a batch passes in parts here."""
    return _open is not None


def over_parts(mine: Tensor) -> Tensor:
    """The sum over all parts of a batch that passes in parts; else `mine`."""
    return mine if _open is None else _open.whole(mine)
