"""Metrics of a split of which several processes evaluate a part of the batches each: what they met, joined exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compactmtl.distributed.agree import gathered
from compactmtl.distributed.processes import rank, sum_over, world
from compactmtl.tasks import Task
from compactmtl.tasks.base import ListedMetrics, Metrics, SummedMetrics


@dataclass
class Met:
    """What one process met of a split, or all have: metrics by task and by task and source, and what was not a number.

    Of several processes each has every `world()`th batch, its own number first.
    """

    metrics: dict[str, Metrics]
    by_source: dict[str, dict[str, Metrics]]
    broken: set[str] = field(default_factory=set)  # tasks
    batches: int = 0
    _numbers: dict[int, list[int]] = field(
        default_factory=dict
    )  # of the batches that metrics (by id) were given

    def note(self, metrics: Metrics) -> None:
        """`metrics` are given the batch that is in progress."""
        self._numbers.setdefault(id(metrics), []).append(self.batches * world() + rank())

    def join(self, tasks: Mapping[str, Task]) -> None:
        """Become what all processes together have met; the same on each."""
        mine = [
            [name, source, self._numbers[id(metrics)][0]]
            for name, own in self.by_source.items()
            for source, metrics in own.items()
        ]
        everyone = gathered({"broken": sorted(self.broken), "batches": self.batches, "sources": mine})
        self.broken = {name for one in everyone for name in one["broken"]}
        self.batches = sum(one["batches"] for one in everyone)
        first: dict[tuple[str, str], int] = {}
        for name, source, number in (row for one in everyone for row in one["sources"]):
            first[name, source] = min(number, first.get((name, source), number))
        for name, metrics in self.metrics.items():
            self._join(name, metrics)
        met, self.by_source = self.by_source, {name: {} for name in self.metrics}
        for name, source in sorted(first, key=lambda key: first[key]):
            own = met[name].get(source) or tasks[name].metrics()
            self._join(name, own)
            self.by_source[name][source] = own

    def _join(self, name: str, metrics: Metrics) -> None:
        if isinstance(metrics, SummedMetrics):
            sum_over(list(metrics.sums()))
            return
        assert isinstance(metrics, ListedMetrics), (
            f"the metrics of {name} cannot be joined: see can_be_joined"
        )
        rows = zip(self._numbers.get(id(metrics), []), metrics.listed(), strict=True)
        everything = [tuple(row) for one in gathered(list(rows)) for row in one]
        metrics.take([listed for _, listed in sorted(everything, key=lambda row: row[0])])


def can_be_joined(task: Task) -> bool:
    """Whether the metrics of a task say how those of parts of a split make up the split's."""
    return isinstance(task.metrics(), SummedMetrics | ListedMetrics)
