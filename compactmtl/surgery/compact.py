"""Surgery on any model: contract factorized layers, remove dead channels, prove that the function is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compactmtl.errors import CompactError, SurgeryError
from compactmtl.graph import ChannelGraph, cost
from compactmtl.graph.copies import copy_model
from compactmtl.graph.space import Flags
from compactmtl.graph.trace import check_inputs, check_model, first_line
from compactmtl.overparam import contract
from compactmtl.surgery.analyse import choose_alive
from compactmtl.surgery.apply import apply_plan, has_bias_slot
from compactmtl.surgery.computed import computed_layers, contract_computed
from compactmtl.surgery.gather import Thinned, choose_thinned
from compactmtl.surgery.kept import kept_whole
from compactmtl.surgery.plan import Plan, signature
from compactmtl.surgery.prove import Proof, Reference, compare, reference
from compactmtl.surgery.report import LayerChange, SurgeryReport, layer_changes
from compactmtl.surgery.write import write_plan

ROUNDED = 1e-4  # largest relative error where weights are computed in float32 once instead of at every call


@dataclass(frozen=True)
class CompactResult:
    """The small model (eval mode, trainable), the edits that made it, and what changed with its proof."""

    model: nn.Module
    plan: Plan
    report: SurgeryReport


def compact(
    model: nn.Module,
    example_inputs: Sequence[Any],
    align: int = 1,
    tolerance: float | None = None,
    gather: bool = False,
) -> CompactResult:
    """Remove every channel of `model` that has no effect, without changing its function in eval mode.

    `align` keeps channel counts at multiples where some must stay. The result is a new module; `model` is
    left as it was. What cannot be removed exactly is left alone and listed in the report: an edit that
    fails its proof (largest error over `tolerance` of the output's largest value, by default 1e-5 in float64
    and 1e-4 where only a narrower type fits) is rolled back. `example_inputs` are what model(*example_inputs)
    takes: tensors, or lists and dicts of them. With `gather` layers also pick the channels that they need by index
    where the tensor around them keeps more and the MACs saved outweigh the memory moved, as predicted.
    Raises SurgeryError where the model cannot be traced, or gives other outputs at every run.
    """
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise SurgeryError(
            f"align must be a whole number of at least 1, found {align}", "use 1 for no alignment"
        )
    started = time.perf_counter()
    check_model(model)
    check_inputs(example_inputs)
    # A forward may write into its inputs: the caller's stay as they were.
    inputs = tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, list(example_inputs)
    )
    plain = _plain_copy(model)
    graph = ChannelGraph.trace(plain, inputs)
    expected = reference(plain, inputs)
    found = None
    computed = computed_layers(graph, plain)
    if computed:
        found = _remove(plain, inputs, expected, align, tolerance, gather, computed)
    if found is None or found.plan.empty:  # nothing gained: layers with computed weights stay what they are
        found = _remove(plain, inputs, expected, align, tolerance, gather, graph=graph)
    assert found is not None
    plan, small = found.plan, found.model
    before, after = cost(plain, inputs), cost(small, inputs)
    report = SurgeryReport(
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        layers=found.layers,
        proof=found.proof,
        kept_whole=found.kept_whole,
        contracted=plan.contracted,
        seconds=time.perf_counter() - started,
    )
    return CompactResult(small, plan, report)


@dataclass(frozen=True)
class _Removal:
    plan: Plan
    model: nn.Module
    proof: Proof
    layers: tuple[LayerChange, ...]
    kept_whole: dict[str, str]


def _remove(
    plain: nn.Module,
    inputs: Sequence[Any],
    expected: Reference,
    align: int,
    tolerance: float | None,
    gather: bool,
    computed: Sequence[str] = (),
    graph: ChannelGraph | None = None,
) -> _Removal | None:
    """Remove what is dead, with the layers `computed` contracted first.

    None where that does not keep the function: their weights, computed in float64 for the proof, are then rounded.
    """
    contracted, original = plain, expected
    if computed:
        contracted = copy_model(plain, share=True)
        contract_computed(contracted, computed)
        expected = reference(contracted, inputs)
    if graph is None:
        graph = ChannelGraph.trace(contracted, inputs)
    attempt = _Attempt(graph, contracted, expected, align, tolerance)
    alive, rolled_back = attempt.search()
    if gather:
        rolled_back += attempt.gather(alive)
    plan, small, proof = attempt.result(alive)
    if computed:
        proof = compare(original, small, max(tolerance or 0.0, ROUNDED))
        if not proof.passed:
            return None
    plan = plan.model_copy(update={"contracted": tuple(computed), "signature": signature(plain)})
    kept = {
        **kept_whole(graph, alive, attempt.unbiased),
        **dict.fromkeys(rolled_back, "its removal changed the function: rolled back"),
    }
    return _Removal(plan, small, proof, layer_changes(graph, alive, attempt.thinned), kept)


def _plain_copy(model: nn.Module) -> nn.Module:
    try:
        return contract(model).eval()
    except CompactError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"{type(model).__name__} could not be copied: {first_line(error)}",
            "drop attributes that copy.deepcopy does not take, such as open files, locks and results of a run",
        ) from error


Result = tuple[Plan, nn.Module, Proof]


class _Attempt:
    """Try removals, and where the proof fails find and pin the channels that are to blame."""

    def __init__(
        self, graph: ChannelGraph, plain: nn.Module, expected: Reference, align: int, tolerance: float | None
    ) -> None:
        self._graph, self._plain, self._expected = graph, plain, expected
        self._align, self._tolerance = align, tolerance
        modules = dict(plain.named_modules())
        self.unbiased = frozenset(
            product.name
            for product in graph.analysis.products.values()
            if product.name not in modules or not has_bias_slot(modules[product.name])
        )
        self._slabs = True
        self.thinned: dict[str, Thinned] = {}
        self._last: tuple[bytes, Result] | None = None

    def search(self) -> tuple[Flags, list[str]]:
        """The classes that stay, and the layers whose removal had to be rolled back."""
        pinned = np.zeros(self._graph.classes, dtype=bool)
        alive = self._choose(pinned)
        proof = self.result(alive)[2]
        if proof.passed:
            return alive, []
        self._require_repeatable()
        self._slabs = False  # a forward may count its heads in a way that cannot be changed
        alive = self._choose(pinned)
        proof = self.result(alive)[2]
        if proof.passed:
            return alive, []
        units = self._units(~alive)
        left, blamed = list(range(len(units))), set[int]()
        while left and not proof.passed:
            # The case that fails finds what is to blame; the others have their say once it passes.
            case = proof.failed_case
            accepted: list[int] = []
            found = self._blame(units, left, accepted, case)
            blamed.update(found)
            # Where nothing fails on its own and yet all together do, nothing of it is to be trusted.
            left = accepted if found else []
            alive = self._choose(self._all_but(units, left))
            proof = self.result(alive)[2]
        blamed.update(set(range(len(units))) - set(left))
        return alive, [units[index][0] for index in sorted(blamed)]

    def _require_repeatable(self) -> None:
        if not compare(self._expected, self._plain, self._tolerance).passed:
            raise SurgeryError(
                f"{type(self._plain).__name__} gives another output at every run on the same input in eval mode",
                "make its forward deterministic in eval mode: nothing can be proved of it as it is",
            )

    def _choose(self, pinned: Flags) -> Flags:
        return choose_alive(self._graph, self._align, pinned, self.unbiased, self._slabs)

    def result(self, alive: Flags) -> Result:
        """Plan, small model and full proof with only the `alive` classes left."""
        key = alive.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = None  # frees the model of the attempt before
            self._last = (key, self._tried(alive, None))
        return self._last[1]

    def gather(self, alive: Flags) -> list[str]:
        """Thin layers by index, on top of the classes that go; the layers for which that had to be rolled back."""
        chosen = choose_thinned(self._graph, self._plain, alive, self._align)
        accepted: dict[str, Thinned] = {}
        blamed = self._blame_gathers(alive, chosen, accepted)
        self.thinned, self._last = accepted, None
        if not self.result(alive)[2].passed:
            self.thinned, self._last, blamed = {}, None, list(chosen)
        return [f"{name} (its gather)" for name in blamed]

    def _blame_gathers(
        self, alive: Flags, among: Mapping[str, Thinned], accepted: dict[str, Thinned]
    ) -> list[str]:
        """Accept what passes together with all accepted so far, by halves; return what fails on its own."""
        if not among:
            return []
        self.thinned, self._last = {**accepted, **among}, None
        if self.result(alive)[2].passed:
            accepted.update(among)
            return []
        names = list(among)
        if len(names) == 1:
            return names
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        return [
            name
            for half in halves
            for name in self._blame_gathers(alive, {key: among[key] for key in half}, accepted)
        ]

    def _tried(self, alive: Flags, case: int | None) -> Result:
        plan = write_plan(self._graph, self._plain, alive, self.thinned)
        small = apply_plan(self._plain, plan).eval()
        return plan, small, compare(self._expected, small, self._tolerance, case)

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

    def _blame(
        self, units: Sequence[tuple[str, Flags]], among: list[int], accepted: list[int], case: int
    ) -> list[int]:
        """Accept what passes together with all accepted so far, by halves; return what fails on its own."""
        alive = self._choose(self._all_but(units, accepted + among))
        if self._tried(alive, case)[2].passed:
            accepted.extend(among)
            return []
        if len(among) == 1:
            return among
        middle = len(among) // 2
        return [
            *self._blame(units, among[:middle], accepted, case),
            *self._blame(units, among[middle:], accepted, case),
        ]
