"""Surgery on any model: contract factorized layers, remove dead channels, prove that the function is kept."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph, cost
from compactmtl.graph.space import Flags
from compactmtl.overparam import contract
from compactmtl.surgery.analyse import choose_alive
from compactmtl.surgery.apply import apply_plan
from compactmtl.surgery.plan import Plan
from compactmtl.surgery.prove import Proof, prove
from compactmtl.surgery.report import SurgeryReport, layer_changes
from compactmtl.surgery.write import write_plan


@dataclass(frozen=True)
class CompactResult:
    """The small model (eval mode, trainable), the edits that made it, and what changed with its proof."""

    model: nn.Module
    plan: Plan
    report: SurgeryReport


def compact(
    model: nn.Module, example_inputs: Sequence[Tensor], align: int = 1, tolerance: float = 1e-4, gather: bool = False
) -> CompactResult:
    """Remove every channel of `model` that has no effect, without changing its function in eval mode.

    `align` keeps channel counts at multiples where some must stay. The result is a new module; `model` is
    left as it was. What cannot be removed exactly is left alone and listed in the report: an edit that
    fails its proof (largest error over `tolerance` of the output's largest value) is rolled back.
    Raises SurgeryError where the model cannot be traced.
    """
    if align < 1:
        raise SurgeryError(f"align must be at least 1, found {align}", "use 1 for no alignment")
    started = time.perf_counter()
    plain = contract(copy.deepcopy(model)).eval()
    graph = ChannelGraph.trace(plain, example_inputs)
    attempt = _Attempt(graph, plain, example_inputs, align, tolerance)
    alive, rolled_back = attempt.search()
    plan, small, proof = attempt.result(alive)
    before, after = cost(plain, example_inputs), cost(small, example_inputs)
    report = SurgeryReport(
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        layers=layer_changes(graph, alive),
        proof=proof,
        kept_whole={
            **_kept(graph),
            **dict.fromkeys(rolled_back, "its removal changed the function: rolled back"),
        },
        seconds=time.perf_counter() - started,
    )
    return CompactResult(small, plan, report)


def _kept(graph: ChannelGraph) -> dict[str, str]:
    """Layers with channels that are dead and yet stay because an operator without a rule reads or writes them."""
    return {name.rpartition(".")[0] or name: reason for name, reason in graph.analysis.kept_whole.items()}


class _Attempt:
    """Try removals, and where the proof fails find and pin the channels that are to blame."""

    def __init__(
        self, graph: ChannelGraph, plain: nn.Module, inputs: Sequence[Tensor], align: int, tolerance: float
    ) -> None:
        self._graph, self._plain, self._inputs, self._align, self._tolerance = (
            graph,
            plain,
            inputs,
            align,
            tolerance,
        )
        self._results: dict[bytes, tuple[Plan, nn.Module, Proof]] = {}

    def search(self) -> tuple[Flags, list[str]]:
        """The classes that stay, and the layers whose removal had to be rolled back."""
        pinned = np.zeros(self._graph.classes, dtype=bool)
        alive = choose_alive(self._graph, self._align, pinned)
        if self.result(alive)[2].passed:
            return alive, []
        units = self._units(~alive)
        accepted: list[int] = []
        blamed = self._blame(units, list(range(len(units))), accepted)
        alive = choose_alive(self._graph, self._align, self._all_but(units, accepted))
        if not self.result(alive)[2].passed:
            alive = np.ones(self._graph.classes, dtype=bool)
            blamed = list(range(len(units)))
        return alive, [units[index][0] for index in blamed]

    def result(self, alive: Flags) -> tuple[Plan, nn.Module, Proof]:
        key = alive.tobytes()
        if key not in self._results:
            plan = write_plan(self._graph, self._plain, alive)
            small = apply_plan(self._plain, plan).eval()
            self._results = {key: (plan, small, prove(self._plain, small, self._inputs, self._tolerance))}
        return self._results[key]

    def _units(self, removed: Flags) -> list[tuple[str, Flags]]:
        """Removed classes by the layer that first writes them: what is rolled back together."""
        units: list[tuple[str, Flags]] = []
        left = removed.copy()
        for product in self._graph.analysis.products.values():
            flags = np.zeros_like(left)
            flags[self._graph.labels[product.outputs]] = True
            flags &= left
            if flags.any():
                units.append((product.name, flags))
                left &= ~flags
        if left.any():
            units.append(("other", left))
        return units

    def _all_but(self, units: Sequence[tuple[str, Flags]], chosen: Sequence[int]) -> Flags:
        pinned = np.ones(self._graph.classes, dtype=bool)
        for index in chosen:
            pinned &= ~units[index][1]
        return pinned

    def _blame(self, units: Sequence[tuple[str, Flags]], among: list[int], accepted: list[int]) -> list[int]:
        """Accept what passes together with all accepted so far, by halves; return what fails on its own."""
        alive = choose_alive(self._graph, self._align, self._all_but(units, accepted + among))
        if self.result(alive)[2].passed:
            accepted.extend(among)
            return []
        if len(among) == 1:
            return among
        middle = len(among) // 2
        return self._blame(units, among[:middle], accepted) + self._blame(units, among[middle:], accepted)
