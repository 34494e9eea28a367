"""Hold a choice by a latency table against what the chosen network takes, before it can no longer be changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compactmtl.graph.space import Flags
from compactmtl.sparsity.saved import check_state

ROUNDS = 5  # measurements of a final choice
LEAST, MOST = 0.94, 0.99  # shares of the budget between which a measured choice is taken
CENTER = 0.965  # the share that a choice aims at: a second measurement differs by some percent
FURTHER = 1.1  # how much more a choice is asked for that took as long as the one before
MILESTONES = (0.6, 0.85)  # shares of the reduction at which a choice on the way is measured

Clock = Callable[
    [Sequence[Flags]], float | None
]  # of the network with only the groups in `keep`; None: too busy


@dataclass(frozen=True)
class Check:
    """One measurement of a choice: the share of the reduction that was due, and milliseconds by the table and measured."""

    share: float
    predicted: float
    measured: float


@dataclass
class Truth:
    """What was measured of choices by a table: `factor` is the last time measured over what the table said of it.

    `clock` measures; without one nothing is checked and the factor stays 1.
    """

    clock: Clock | None = None
    factor: float = 1.0
    checks: list[Check] = field(default_factory=list)

    @property
    def aim(self) -> float:
        """The share of the budget that a choice aims at."""
        return 1.0 if self.clock is None else CENTER

    def due(self, share: float) -> bool:
        """Whether a choice for this share of the reduction passes a milestone that none before it passed."""
        before = max((check.share for check in self.checks), default=0.0)
        return self.clock is not None and any(before < one <= share for one in MILESTONES)

    def measure(self, keep: Sequence[Flags], predicted: float, share: float = 1.0) -> float | None:
        """Milliseconds of a choice of which the table says `predicted`; None where they could not be measured."""
        measured = None if self.clock is None else self.clock(keep)
        if measured is not None:
            self.checks.append(Check(share, predicted, measured))
            self.factor = measured / predicted
        return measured

    def of(self, predicted: float) -> float | None:
        """Milliseconds of the final choice of which the table says `predicted`; None where it was not measured."""
        own = (one for one in reversed(self.checks) if one.share >= 1)
        return next((one.measured for one in own if math.isclose(one.predicted, predicted)), None)

    def settle(
        self, choose: Callable[[], list[Flags]], cost: Callable[[Sequence[Flags]], float], budget: float
    ) -> list[Flags]:
        """The final choice: `choose`, which follows the factor, until what is measured is within the budget and close to it.

        Of those that were measured the one within the budget that is nearest to what is aimed at or, where none is within
        it, the fastest. Where a measurement fails, the rounds end; a choice that could not be measured is taken only where
        none before it was within the budget.
        """
        tried: list[tuple[float, list[Flags]]] = []
        unmeasured: list[Flags] | None = None
        for _ in range(ROUNDS if self.clock is not None else 0):
            gone = choose()
            keep = [~flags for flags in gone]
            measured = self.measure(keep, cost(keep))
            if measured is None:
                unmeasured = gone
                break
            again = any(measured == ms for ms, _ in tried)  # a step of which the table knows nothing
            tried.append((measured, gone))
            if LEAST * budget <= measured <= MOST * budget or (again and measured <= budget):
                break
            if again:
                self.factor *= FURTHER
        within = [one for one in tried if one[0] <= budget]
        if within:
            return min(within, key=lambda one: _off(one[0] / budget))[1]
        if (
            unmeasured is not None
        ):  # it follows what was measured of the choices before, which were all too slow
            return unmeasured
        return min(tried, key=_ms)[1] if tried else choose()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "factor": self.factor,
            "checks": [[one.share, one.predicted, one.measured] for one in self.checks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state that lacks something."""
        check_state(state, ("factor", "checks"), "a target")
        self.factor = float(state["factor"])
        self.checks = [Check(*map(float, one)) for one in state["checks"]]


def _off(share: float) -> float:
    """How far a share of the budget is from what is aimed at; above it twice, as the next measurement may be over it."""
    return max(CENTER - share, 2 * (share - CENTER))


def _ms(tried: tuple[float, list[Flags]]) -> float:
    return tried[0]
