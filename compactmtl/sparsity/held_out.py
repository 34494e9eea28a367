"""What a task loses on held-out data: relative to what it had there, with one standard error over parts of that data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PARTS = 10  # of the held-out data, sample i in part i mod PARTS


@dataclass(frozen=True)
class HeldOut:
    """A task's value on held-out data: its primary metric, or a loss.

    `parts` is the same value on each of some parts of the data, the same samples at each measurement; empty where it is
    known of the whole alone.
    """

    value: float
    parts: tuple[float, ...] = ()
    higher_is_better: bool = False


@dataclass(frozen=True)
class Loss:
    """The share of a reference that is lost, below 0 where something is won, and its standard error; None: not known."""

    share: float
    error: float | None

    def within(self, bound: float) -> bool:
        """Whether a bound holds, within one standard error. What is not a number holds no bound."""
        return self.share <= bound + (self.error or 0.0)

    @property
    def words(self) -> str:
        """Such as "1.4 % ± 0.3 %"."""
        error = "" if self.error is None else f" ± {100 * self.error:.2g} %"
        return f"{100 * self.share:.3g} %{error}"


def lost(reference: HeldOut, now: HeldOut) -> Loss:
    """What is lost from `reference` to `now`, as a share of the reference.

    The standard error is that of the mean of the parts' own losses, so that samples which are hard at both
    measurements add nothing to it. Of a reference of 0 nothing is lost, or infinitely much.
    """
    share = _share(reference.value, now.value, now.higher_is_better)
    if len(reference.parts) != len(now.parts):
        return Loss(share, None)  # not of the same samples
    pairs = zip(reference.parts, now.parts, strict=True)
    return Loss(share, standard_error([_share(one, other, now.higher_is_better) for one, other in pairs]))


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; what is not finite is left out, and of fewer than two it is not known."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else None


def is_better(one: HeldOut, other: HeldOut) -> bool:
    """Whether the first is the better value."""
    return one.value > other.value if one.higher_is_better else one.value < other.value


def _share(before: float, after: float, higher_is_better: bool) -> float:
    worse = before - after if higher_is_better else after - before
    if before == 0:
        return 0.0 if worse <= 0 else math.inf
    return worse / abs(before)
