"""Try surgery before training: which channels it removes when they are zero, and which it would have to leave.

A forward may check a width, or count channels in a way that no edit follows. The graph does not show it: the edited
network has to run. Here it runs once, with a share of every candidate's channels gone, beside the network in which they
are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.copies import copy_model
from compactmtl.graph.groups import GroupFamily
from compactmtl.graph.inputs import copied, tensors_in
from compactmtl.graph.space import Flags, Ids
from compactmtl.graph.stages import first_line
from compactmtl.surgery.analyse import Constraints, choose_alive, complete
from compactmtl.surgery.apply import apply_plan, has_bias_slot
from compactmtl.surgery.equal_widths import find_equal_widths
from compactmtl.surgery.write import write_plan

# Two float32 networks whose sums run in another order. A channel that is not zero where it is read, or one too many,
# is off by about its share of the output.
SAME = 1e-3


@dataclass(frozen=True)
class Candidate:
    """Channels that can go one by one: a family with all its members, and the channel of each class of the graph.

    Of those that are zero the first `carriers` stay.
    """

    family: GroupFamily
    owner: Ids  # (classes,), -1 for a class of no channel
    carriers: int = 0


@dataclass(frozen=True)
class Rehearsal:
    """What surgery can do: the constraints under which the network runs, and the candidates that it cannot remove.

    `refused` maps the position of a candidate to the reason why its channels stay; `carriers` to how many of those that are
    zero stay all the same, to carry what the others have become: another constant.
    """

    constraints: Constraints = field(default_factory=Constraints)
    refused: dict[int, str] = field(default_factory=dict)
    carriers: dict[int, int] = field(default_factory=dict)


def rehearse(
    graph: ChannelGraph, plain: nn.Module, inputs: Sequence[Any], candidates: Sequence[Candidate]
) -> Rehearsal:
    """Remove channels of all `candidates` from `plain`, the network that was traced, in the ways in which surgery tries it."""
    trial = _Trial(graph, plain, inputs, candidates)
    everything = [index for index, candidate in enumerate(candidates) if candidate.family.size > 1]
    ways = [Constraints()]
    if graph.units:
        ways.append(Constraints(whole_units=False))
    equal_widths = tuple(find_equal_widths(graph))
    if equal_widths:
        ways.append(Constraints(whole_units=False, equal_widths=equal_widths))
    for constraints in ways:
        trial.constraints = constraints
        if not trial.fault(everything):
            return Rehearsal(constraints, dict.fromkeys(trial.stuck(everything), _COUNTED))
    accepted: list[int] = []
    faults: dict[int, str] = {}
    trial.bisect(everything, accepted, faults)
    refused: dict[int, str] = {}
    carriers: dict[int, int] = {}
    for index, fault in faults.items():
        kept, gone = trial.outcome(index) if fault == _OTHER else (0, 0)
        if fault == _OTHER and kept < gone:
            carriers[index] = kept
        else:
            refused[index] = (
                fault if fault != _OTHER else "at zero they become another constant, which cannot go"
            )
    refused |= dict.fromkeys(trial.stuck(accepted), _COUNTED)
    return Rehearsal(trial.constraints, refused, carriers)


_COUNTED = "its forward counts them with one number together with others, which stay"
_OTHER = "another function"


class _Trial:
    """Removals from one network, and whether the rest then runs as it does with zeros in their place."""

    def __init__(
        self, graph: ChannelGraph, plain: nn.Module, inputs: Sequence[Any], candidates: Sequence[Candidate]
    ) -> None:
        self._graph, self._plain, self._inputs, self._candidates = graph, plain, inputs, candidates
        self.constraints = Constraints()
        # Other numbers for candidates beside each other: equal ones would hide that a forward takes one for another.
        self._gone = [self._some(candidate.family.size, index) for index, candidate in enumerate(candidates)]

    @staticmethod
    def _some(size: int, index: int) -> Flags:
        count = min(max(size // 2 - index % 3, 1), size - 1)
        chosen = np.random.default_rng(index).permutation(size)[:count]
        return np.isin(np.arange(size), chosen)

    def fault(self, indices: Sequence[int]) -> str:
        """Why the network does not run, or is another, without channels of these candidates; empty where all is well."""
        graph, alive = self._graph, self._left(indices)
        masked = self._masked(indices)
        try:
            small = apply_plan(masked, write_plan(graph, masked, alive)).eval()
            outputs = _outputs(small, self._inputs)
        except Exception as error:
            return first_line(error)
        return "" if _same(_outputs(masked, self._inputs), outputs) else _OTHER

    def stuck(self, indices: Sequence[int]) -> list[int]:
        """The candidates of which nothing goes even where all of these go: they have to keep as many as something that stays."""
        alive = self._left(indices)
        return [index for index in indices if alive[self._candidates[index].owner >= 0].all()]

    def _left(self, indices: Sequence[int]) -> Flags:
        """The classes that surgery leaves where some channels of these candidates are zero."""
        alive = np.ones(self._graph.classes, dtype=bool)
        for index in indices:
            owner = self._candidates[index].owner
            mine = owner >= 0
            alive[np.flatnonzero(mine)[self._gone[index][owner[mine]]]] = False
        complete(self._graph, alive, self.constraints)
        return alive

    def bisect(self, among: list[int], accepted: list[int], faults: dict[int, str]) -> None:
        """Accept what passes together with all accepted so far, by halves; note what fails on its own."""
        if not among:
            return
        fault = self.fault([*accepted, *among])
        if not fault:
            accepted.extend(among)
        elif len(among) == 1:
            faults[among[0]] = fault
        else:
            middle = len(among) // 2
            self.bisect(among[:middle], accepted, faults)
            self.bisect(among[middle:], accepted, faults)

    def outcome(self, index: int) -> tuple[int, int]:
        """How many of a candidate's channels that are zero surgery keeps, and of how many."""
        masked = self._masked([index])
        graph = ChannelGraph.trace(masked, self._inputs)
        modules = dict(masked.named_modules())
        unbiased = frozenset(
            p.name for p in graph.products if p.name not in modules or not has_bias_slot(modules[p.name])
        )
        none = np.zeros(graph.classes, dtype=bool)
        alive = choose_alive(graph, none, replace(self.constraints, unbiased=unbiased))
        member = next(m for m in self._candidates[index].family.members if m.role != "consumer")
        binding = graph.binding(member.parameter, member.dim)
        assert binding is not None
        kept: Flags = np.asarray(alive[graph.labels[binding.ids[member.indices[self._gone[index]]]]].any(1))
        return int(kept.sum()), len(kept)

    def _masked(self, indices: Sequence[int]) -> nn.Module:
        model = copy_model(self._plain)
        with torch.no_grad():
            for index in indices:
                for member in self._candidates[index].family.members:
                    if member.role != "consumer":
                        rows = torch.from_numpy(member.indices[self._gone[index]].ravel())
                        parameter = model.get_parameter(member.parameter)
                        parameter.index_fill_(member.dim, rows.to(parameter.device), 0.0)
        return model.eval()


def _outputs(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    with borrowed(model, weights=False):
        return tensors_in(model(*copied(inputs)))


def _same(expected: Sequence[Tensor], computed: Sequence[Tensor]) -> bool:
    if [value.shape for value in expected] != [value.shape for value in computed]:
        return False
    for one, other in zip(expected, computed, strict=True):
        one, other = one.double(), other.double()
        scale = one.abs().max() if one.numel() else one.sum()
        if not bool(((one - other).abs() <= SAME * scale).all()):
            return False
    return True
