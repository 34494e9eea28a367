"""What a model costs when groups are zero: which channels surgery can then remove, and what remains.

A channel can go when everything that writes it is zero, or everything that reads it. So groups of any kind, also
those that lie in one layer alone, are judged by what they truly free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

from compactmtl.errors import ConfigError
from compactmtl.graph.branches import Branch
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.groups import GroupFamily, Member
from compactmtl.graph.space import Flags, Ids
from compactmtl.sparsity.latency import LatencyTable, Widths
from compactmtl.sparsity.rehearsal import Candidate, Rehearsal
from compactmtl.sparsity.selection import CostFunction, Keep
from compactmtl.surgery.analyse import complete

Measure = Literal["macs", "parameters", "latency"]


class _Owners:
    """For every dimension of a parameter the group that each of its slices belongs to, over all families of a kind."""

    def __init__(self, families: Sequence[GroupFamily]) -> None:
        self._of: dict[tuple[str, int], Ids] = {}
        first = 0
        for family in families:
            for member in family.members:
                size = int(member.indices.max()) + 1
                known = self._of.get((member.parameter, member.dim), np.empty(0, dtype=np.int64))
                owner = np.full(max(size, len(known)), -1, dtype=np.int64)
                owner[: len(known)] = known
                owner[member.indices] = first + np.arange(family.size)[:, None]
                self._of[member.parameter, member.dim] = owner
            first += family.size
        self.never, self.always = first, first + 1  # stand for slices that are never, or always, zero

    def of(self, member: Member) -> Ids:
        """The groups of a member's slices, of its indices' shape; `never` where a slice is in no group."""
        owner = self._of.get((member.parameter, member.dim), np.empty(0, dtype=np.int64))
        padded = np.append(owner, -1)
        groups = padded[np.minimum(member.indices, len(owner))]
        return np.where(groups < 0, self.never, groups)


@dataclass(frozen=True)
class Interface:
    """What goes into a network and comes out: the size of one input, (C, H, W), and its tasks; None where not known."""

    image: tuple[int, ...] | None = None
    tasks: tuple[str, ...] | None = None


class Removal:
    """The cost of a model as a function of the groups that are kept: one bool array (n,) a family, in order."""

    def __init__(
        self,
        graph: ChannelGraph,
        candidates: Sequence[Candidate],
        families: Sequence[GroupFamily],
        rehearsal: Rehearsal | None = None,
        whole_heads: bool = False,
        interface: Interface | None = None,
        branches: Sequence[Branch] = (),
    ) -> None:
        """`families` hold the groups, `candidates` the channels that can go; both named as in the traced model.

        `keep` says of each of `branches`, behind all families, whether it stays, (1,). A latency table has to be of the same
        `interface`.
        """
        self._graph = graph
        self._branches = [(branch, graph.parts_of(branch.calls)) for branch in branches]
        self._count = len(families)
        self._interface = interface or Interface()
        self._how = rehearsal or Rehearsal()
        # What every dimension of a parameter holds: where nothing of it remains, or parts differ, surgery keeps more.
        self._held = _in_classes([binding.ids for binding in graph.bindings], graph)
        self._equal = bool(self._how.constraints.equal_widths) or whole_heads
        self._offsets = np.cumsum([0, *(candidate.family.size for candidate in candidates)])
        self._owner = np.full(graph.classes, self._offsets[-1], dtype=np.int64)
        owners = _Owners(families)
        grouped, counted = graph.grouped_classes(), graph.counted_classes()
        self._ways: list[
            tuple[Ids | None, Ids | None, int]
        ] = []  # written and read by which groups, carriers
        for candidate, first in zip(candidates, self._offsets, strict=False):
            mine = candidate.owner >= 0
            self._owner[mine] = first + candidate.owner[mine]
            written = [m for m in candidate.family.members if m.role != "consumer"]
            read = [m for m in candidate.family.members if m.role == "consumer"]
            unseen = np.full((candidate.family.size, 1), owners.always)
            unseen[candidate.owner[mine & grouped]] = owners.never  # a reader whose slices no group holds
            unseen[candidate.owner[mine & counted]] = owners.never  # a norm over channels reads it, too
            self._ways.append(
                (
                    _gathered(owners, written, None) if written else None,
                    _gathered(owners, read, unseen) if read else None,
                    candidate.carriers,
                )
            )
        sizes = [*(family.size for family in families), *(1 for _ in branches)]
        self._whole = [np.ones(size, dtype=bool) for size in sizes]

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that can go as a whole."""
        return tuple(branch for branch, _ in self._branches)

    def classes(self, keep: Keep) -> Flags:
        """Which classes of the graph stay, (classes,)."""
        own = keep[: self._count]
        gone = np.concatenate([*(~flags for flags in own), [False, True]])  # never, always
        alive = np.ones(self._offsets[-1] + 1, dtype=bool)
        for first, (written, read, carriers) in zip(self._offsets, self._ways, strict=False):
            for groups, kept in ((written, carriers), (read, 0)):
                if groups is not None:
                    dead = np.flatnonzero(gone[groups].all(1))
                    alive[first + dead[kept:]] = False
        classes = alive[self._owner]
        if self._equal or not (self._held @ classes.astype(np.float32)).all():
            complete(self._graph, classes, self._how.constraints)
        return classes

    def macs(self, keep: Keep) -> float:
        """MACs that remain, as `cost` counts them."""
        parts = [own for branch, own in self._gone(keep)]
        without = np.logical_or.reduce(parts) if parts else None
        return self._graph.macs_of_classes(self.classes(keep), without)

    def parameters(self, keep: Keep) -> float:
        """Parameters that remain."""
        names = frozenset[str]().union(*(branch.parameters for branch, _ in self._gone(keep)))
        return self._graph.parameters_of_classes(self.classes(keep), names)

    def widths(self, keep: Keep) -> Widths:
        """Outputs and inputs that remain of every layer that is left."""
        layers = frozenset[str]().union(*(branch.layers for branch, _ in self._gone(keep)))
        return self._graph.widths(self.classes(keep), layers)

    def _gone(self, keep: Keep) -> list[tuple[Branch, Flags]]:
        """The branches that are switched off, with their parts of all MACs."""
        return [
            own for own, flags in zip(self._branches, keep[self._count :], strict=True) if not flags.any()
        ]

    def latency(self, table: LatencyTable) -> CostFunction:
        """Milliseconds by a table of layers; raises ConfigError where it is of another model."""
        table.check(self.widths(self._whole), self._interface.image, self._interface.tasks)
        return lambda keep: table.milliseconds(self.widths(keep))

    def cost(self, measure: Measure, table: LatencyTable | None = None) -> CostFunction:
        """The cost function of a measure. Raises ConfigError where latency has no table."""
        if measure == "macs":
            return self.macs
        if measure == "parameters":
            return self.parameters
        if table is None:
            raise ConfigError(
                "a latency target needs a table of the layers' latencies",
                "measure one: compactmtl latency RECIPE --target TARGET --out TABLE.json",
            )
        return self.latency(table)


def _in_classes(ids: Sequence[Ids], graph: ChannelGraph) -> csr_matrix:
    """How many entries of each list lie in each class, (lists, classes)."""
    rows = np.repeat(np.arange(len(ids)), [own.size for own in ids])
    columns = graph.labels[np.concatenate([own.ravel() for own in ids])] if ids else np.empty(0, np.int64)
    values = np.ones(len(rows), dtype=np.float32)
    return csr_matrix((values, (rows, columns)), shape=(len(ids), graph.classes))


def _gathered(owners: _Owners, members: Sequence[Member], besides: Ids | None) -> Ids:
    parts = [owners.of(member) for member in members] + ([] if besides is None else [besides])
    groups = np.concatenate(parts, axis=1)
    # the same group appears for each of its members: once is enough
    groups.sort(axis=1)
    different = np.ones(groups.shape[1], dtype=bool)
    different[1:] = (groups[:, 1:] != groups[:, :-1]).any(0)
    return groups[:, different]
