"""What each task may lose while channels go: when that is measured, against what, and how far shrinking goes on.

Between `start` and `end` there are checks at even distances, and a stage from each to the next. What is chosen at the
beginning of a stage is at zero half-way through it; the rest of the network then has the other half to take over. At the
end of the stage it is gone for good, or put back: so a bound that breaks costs one step back and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compactmtl.errors import DataError
from compactmtl.sparsity.held_out import HeldOut, Loss, is_better, lost
from compactmtl.sparsity.saved import check_state

TRIES = 3  # steps back in a row after which nothing more is tried
FASTER = 1.5  # after a check that holds the next stage asks for so much more of the way to what is due, up to all of it
SLOWER = 0.5  # after a step back, for so much
LEAST_ROOM = 0.1  # a channel counts up to ten times as much for a task that has no room left


@dataclass(frozen=True)
class Check:
    """One look at the held-out data: the step, the share of the target that was gone, each bounded task's loss, and
    whether all bounds held.
    """

    step: int
    share: float
    losses: dict[str, Loss]
    held: bool


@dataclass
class Bounds:
    """The bounds of `most` (task -> share), and where shrinking stands.

    The reference of a task is its value at `start`, of the network before any channel goes. As training goes on, a better
    value at a check that holds becomes the reference: a task may lose so much of the best that it had, not of what it
    happened to be at first.
    """

    most: Mapping[str, float]
    marks: tuple[int, ...]  # optimizer steps of the checks; the first is the reference's
    reference: dict[str, HeldOut] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    gone: float = 0.0  # the share of the target that nothing will put back
    pace: float = 1.0
    failed: int = 0  # steps back in a row
    steps_back: int = 0
    stopped: int | None = None  # the step after which nothing more is tried
    seconds: float = 0.0  # spent on measuring
    final: dict[str, Loss] = field(default_factory=dict)  # of the network that is deployed, once it is known

    @classmethod
    def between(cls, most: Mapping[str, float], start: int, end: int, checks: int) -> Bounds:
        """With so many checks after `start`, the last at `end`; fewer where there are fewer steps."""
        count = min(checks, end - start)
        marks = tuple(start + round(number * (end - start) / count) for number in range(count + 1))
        return cls(dict(most), marks)

    def due(self, step: int) -> bool:
        """Whether held-out data is to be measured after this step, and was not yet."""
        judged = bool(self.checks) and self.checks[-1].step == step
        return self.stopped is None and step in self.marks and not judged

    def next_after(self, step: int) -> int:
        """The step of the next check; the last one where none follows."""
        return next((mark for mark in self.marks if mark > step), self.marks[-1])

    def gone_by(self, step: int) -> int:
        """The step after which what was chosen at the beginning of the stage of `step` is at zero."""
        end = next((mark for mark in self.marks if mark >= step), self.marks[-1])
        begin = max((mark for mark in self.marks if mark < step), default=self.marks[0])
        return begin + max((end - begin + 1) // 2, 1)

    def measured(self, step: int, found: Mapping[str, HeldOut], share: float) -> bool:
        """Note what the tasks have with `share` of the target gone; whether all bounds hold.

        Raises DataError where a bounded task is not among `found`, or where the held-out data gives it no finite number at first;
        later that holds no bound.
        """
        for name in self.most:
            if name not in found:
                raise DataError(
                    f"the bound of task {name!r} cannot be watched: what was measured is of {', '.join(found) or 'no task'}",
                    "give its value too, or leave this task out of the losses",
                )
            if not self.reference and not math.isfinite(found[name].value):
                raise DataError(
                    f"the bound of task {name!r} cannot be watched: the held-out data gives it {found[name].value}",
                    "hold out more of the data, or leave this task out of the losses",
                )
        own = {name: found[name] for name in self.most}
        if not self.reference:
            self.reference = own
        losses = {name: lost(self.reference[name], value) for name, value in own.items()}
        held = all(loss.within(self.most[name]) for name, loss in losses.items())
        if held:
            for name, value in own.items():
                if is_better(value, self.reference[name]):
                    self.reference[name] = value
        self.checks.append(Check(step, share, losses, held))
        return held

    def finished(self, found: Mapping[str, HeldOut]) -> None:
        """Note what the tasks have in the network that is deployed."""
        self.final = {name: lost(self.reference[name], found[name]) for name in self.reference}

    def went_on(self) -> None:
        """What the last stage removed is gone for good."""
        self.failed = 0
        self.pace = min(1.0, self.pace * FASTER)

    def went_back(self) -> None:
        """What the last stage removed was put back."""
        self.failed += 1
        self.steps_back += 1
        self.pace *= SLOWER

    def target(self, gone: float, due: float) -> float:
        """The share of the target for the next stage, with `gone` of it gone and `due` by the schedule."""
        return gone + self.pace * max(due - gone, 0.0)

    def rooms(self) -> dict[str, float]:
        """What is left of each bounded task's room, from 1 (nothing lost) to 0 (at its bound plus a standard error)."""
        if not self.checks:
            return dict.fromkeys(self.most, 1.0)
        rooms = {}
        for name, loss in self.checks[-1].losses.items():
            whole = self.most[name] + (loss.error or 0.0)
            rooms[name] = min(max((whole - loss.share) / whole, 0.0), 1.0) if whole > 0 else 0.0
        return rooms

    @property
    def broken(self) -> list[str]:
        """The bounds that did not hold at the last check, in words."""
        if not self.checks:
            return []
        return [
            f"{name} lost {loss.words}, at most {100 * self.most[name]:g} %"
            for name, loss in self.checks[-1].losses.items()
            if not loss.within(self.most[name])
        ]

    def report(self) -> dict[str, Any]:
        """For a log: where shrinking stands, and every check."""
        return {
            "most": dict(self.most),
            "reference": {name: value.value for name, value in self.reference.items()},
            "checks": [_plain(check) for check in self.checks],
            "gone": self.gone,
            "steps_back": self.steps_back,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "final": {name: _number(asdict(loss)) for name, loss in self.final.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        reference = {
            name: [value.value, list(value.parts), value.higher_is_better]
            for name, value in self.reference.items()
        }
        return {
            "reference": reference,
            "checks": [asdict(check) for check in self.checks],
            "gone": self.gone,
            "pace": self.pace,
            "failed": self.failed,
            "steps_back": self.steps_back,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state that lacks something."""
        keys = ("reference", "checks", "gone", "pace", "failed", "steps_back", "stopped", "seconds")
        check_state(state, keys, "the tasks' bounds")
        self.reference = {
            name: HeldOut(float(value), tuple(map(float, parts)), bool(higher))
            for name, (value, parts, higher) in state["reference"].items()
        }
        self.checks = [
            Check(
                int(one["step"]),
                float(one["share"]),
                {name: Loss(**loss) for name, loss in one["losses"].items()},
                bool(one["held"]),
            )
            for one in state["checks"]
        ]
        self.gone, self.pace = float(state["gone"]), float(state["pace"])
        self.failed = int(state["failed"])
        self.steps_back, self.seconds = int(state["steps_back"]), float(state["seconds"])
        self.stopped = None if state["stopped"] is None else int(state["stopped"])


def _plain(check: Check) -> dict[str, Any]:
    """As JSON can hold it: what is no number is none."""
    plain = asdict(check)
    return {**plain, "losses": {name: _number(loss) for name, loss in plain["losses"].items()}}


def _number(loss: dict[str, Any]) -> dict[str, Any]:
    return {**loss, "share": loss["share"] if math.isfinite(loss["share"]) else None}
