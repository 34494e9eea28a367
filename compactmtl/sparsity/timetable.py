"""When channels go: steps, and the share of a target that is due at each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Ramp = Literal["cubic", "linear", "cosine", "geometric"]


@dataclass(frozen=True)
class Timetable:
    """Optimizer steps (counted from 1) at which shrinking starts, the choice is final, and all is done."""

    start: int
    final: int
    end: int

    ramp: Ramp = "cubic"
    reduction: float = 0.5  # the whole target, by which `geometric` is measured

    def share(self, step: int) -> float:
        """The share of the target that is due at `step`.

        `cubic` is the ramp of arXiv:1710.01878, steep first. `geometric` leaves the (1 − reduction)^progress of the
        network, so that an equal share of what is left goes at every step.
        """
        progress = min(max((step - self.start) / max(self.final - self.start, 1), 0.0), 1.0)
        if step >= self.final:
            return 1.0
        if self.ramp == "linear":
            return progress
        if self.ramp == "cosine":
            return (1 - math.cos(math.pi * progress)) / 2
        if self.ramp == "geometric":
            return float((1 - (1 - self.reduction) ** progress) / self.reduction)
        return 1 - (1 - progress) ** 3
