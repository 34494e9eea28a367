"""Find the removals that keep the function: try all of them, and where the proof fails bisect for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from torch import nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.analyse import Constraints, choose_alive
from compactmtl.surgery.apply import apply_plan, has_bias_slot
from compactmtl.surgery.counted import Reading
from compactmtl.surgery.equal_widths import find_equal_widths
from compactmtl.surgery.order import Order
from compactmtl.surgery.plan import Plan
from compactmtl.surgery.prove import Proof, Reference, compare
from compactmtl.surgery.thin import Moved, Thinned, Thinning
from compactmtl.surgery.timed import Left, Times, Timing, choose_left, fast_thinned
from compactmtl.surgery.write import write_plan

Result = tuple[Plan, nn.Module, Proof]
T = TypeVar("T")


class Search:
    """Try removals; where the proof fails, find the channels that cause it and keep them."""

    def __init__(
        self, graph: ChannelGraph, plain: nn.Module, expected: Reference, align: int, tolerance: float | None
    ) -> None:
        self._graph, self._plain, self._expected = graph, plain, expected
        self._tolerance = tolerance
        modules = dict(plain.named_modules())
        unbiased = frozenset(
            product.name
            for product in graph.products
            if product.name not in modules or not has_bias_slot(modules[product.name])
        )
        self._constraints = Constraints(align, unbiased)
        self.thinned: dict[str, Thinned] = {}
        self._order = Order.unchanged(graph.classes)
        self.reasons: dict[int, str] = {}  # class -> why it stays although it could have gone
        self._last: tuple[bytes, Result] | None = None
        self._reading = Reading()

    def search(self) -> tuple[Flags, list[str]]:
        """The classes that stay, and the layers whose removal had to be rolled back."""
        pinned = np.zeros(self._graph.classes, dtype=bool)
        for constraints in self._stages():
            self._constraints = constraints
            alive = self._choose(pinned)
            proof = self._read_otherwise(alive, self.result(alive)[2])
            if proof.passed:
                return alive, []
        removals = self._by_layer(~alive)
        remaining, rolled_back = list(range(len(removals))), set[int]()
        while remaining and not proof.passed:
            # Bisect on the case that fails; the other cases are checked once it passes.
            case = proof.failed_case
            accepted: list[int] = []
            failing = self._bisect(removals, remaining, accepted, case)
            rolled_back.update(failing)
            # Where nothing fails on its own and yet all together do, nothing of it is to be trusted.
            remaining = accepted if failing else []
            alive = self._choose(self._all_but(removals, remaining))
            proof = self.result(alive)[2]
        rolled_back.update(set(range(len(removals))) - set(remaining))
        return alive, [removals[index][0] for index in sorted(rolled_back)]

    def _stages(self) -> Iterator[Constraints]:
        """What removals are held to, more at each stage, until the proof holds."""
        yield self._constraints
        self._require_repeatable()
        # A forward may count its heads in a way that cannot be changed.
        yield replace(self._constraints, whole_units=False)
        # Or it may take one number for the widths of several tensors.
        if equal_widths := tuple(find_equal_widths(self._graph)):
            yield replace(self._constraints, equal_widths=equal_widths)

    def _read_otherwise(self, alive: Flags, proof: Proof) -> Proof:
        """Where the proof fails, take the forward's numbers for something else if that serves, or at least gets further."""
        if proof.failure and not self._reading.layers:  # a forward may check what its layers read
            proof = self._read(alive, proof, replace(self._reading, layers=True))
        wrong = not proof.passed and not proof.failure
        if wrong and self._reading.computed_scales and self.result(alive)[0].scales:
            # attention's scale may be a number of its own
            proof = self._read(alive, proof, replace(self._reading, computed_scales=False))
        return proof

    def _read(self, alive: Flags, proof: Proof, reading: Reading) -> Proof:
        """The proof with this reading, which is kept where it holds or fails otherwise than `proof`."""
        before = self._reading
        self._reading, self._last = reading, None
        found = self.result(alive)[2]
        if found.passed or found.failure != proof.failure:
            return found
        self._reading, self._last = before, None
        return proof

    def _require_repeatable(self) -> None:
        if not compare(self._expected, self._plain, self._tolerance).passed:
            raise SurgeryError(
                f"{type(self._plain).__name__} gives another output at every run on the same input in eval mode",
                "make its forward deterministic in eval mode: nothing can be proved of it as it is",
            )

    def _choose(self, pinned: Flags) -> Flags:
        return choose_alive(self._graph, pinned, self._constraints, self.reasons)

    def result(self, alive: Flags) -> Result:
        """Plan, small model and full proof with only the `alive` classes kept."""
        key = alive.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = None  # frees the model of the attempt before
            self._last = (key, self._tried(alive, None))
        return self._last[1]

    def leave(self, alive: Flags, times: Times) -> tuple[Flags, Timing]:
        """The classes that stay where those removals are left undone that make the network slower, and what that comes to."""
        stays, timing, left = choose_left(self._graph, alive, self._choose, times)
        if len(left) and not self.result(stays)[2].passed:
            return alive, replace(timing, after=timing.all_removed, left=())
        self.reasons.update(
            dict.fromkeys(left.tolist(), f"without it the network is slower on {times.target}")
        )
        return stays, timing

    def thin(
        self, alive: Flags, gather: bool, reorder: bool = True, times: Times | None = None
    ) -> tuple[list[str], tuple[Left, ...]]:
        """Let layers take less than what stays, channels in another order, on top of the classes that go.

        Given are what of it had to be rolled back, and with `times` the layers that would be slower so, which stay as they are.

        With `gather` also by index; without `reorder` channels keep their places.
        """
        thinning = Thinning(self._graph, self._plain, alive, self._constraints.align, gather)
        moved = thinning.moved() if reorder else []
        slow: tuple[Left, ...] = ()

        def choose(runs: Sequence[Moved]) -> dict[str, Thinned]:
            nonlocal slow
            order = thinning.order(runs)
            chosen = thinning.choose(order)
            if times is not None:
                chosen, slow = fast_thinned(self._graph, alive, chosen, order, times)
            return chosen

        chosen = choose(moved)
        moved = thinning.used(moved, chosen)
        if not chosen or self._passes(alive, thinning, moved, chosen):
            return [], slow
        runs: list[Moved] = []
        lost = [
            f"{self._first_writer(run)} (its order)"
            for run, _ in accept(moved, runs, lambda some: self._passes(alive, thinning, some, {}))
        ]
        chosen = choose(runs)
        layers: list[str] = []
        failing = accept(
            list(chosen),
            layers,
            lambda some: self._passes(alive, thinning, runs, {name: chosen[name] for name in some}),
        )
        accepted = {name: chosen[name] for name in layers}
        if not self._passes(alive, thinning, thinning.used(runs, accepted), accepted):
            self._passes(alive, thinning, [], {})
            failing = list(chosen)
        return [*lost, *(f"{name} (what it takes)" for name in failing)], slow

    def _passes(
        self, alive: Flags, thinning: Thinning, moved: Sequence[Moved], thinned: dict[str, Thinned]
    ) -> bool:
        """Whether the proof holds with this order and these layers thinned, which are then what is tried."""
        self._order, self.thinned, self._last = thinning.order(moved), thinned, None
        return self.result(alive)[2].passed

    def _first_writer(self, run: Ids) -> str:
        """The layer that first writes channels of a run."""
        labels = self._graph.labels
        names = (p.name for p in self._graph.products if np.isin(labels[p.outputs], run).any())
        return next(names, "other")

    def _tried(self, alive: Flags, case: int | None) -> Result:
        plan = write_plan(self._graph, self._plain, alive, self.thinned, self._order, self._reading)
        small = apply_plan(self._plain, plan).eval()
        return plan, small, compare(self._expected, small, self._tolerance, case)

    def _by_layer(self, removed: Flags) -> list[tuple[str, Flags]]:
        """Removed classes by the layer that first writes them: what is rolled back together."""
        removals: list[tuple[str, Flags]] = []
        remaining = removed.copy()
        for product in self._graph.products:
            flags = np.zeros_like(remaining)
            flags[self._graph.labels[product.outputs]] = True
            flags &= remaining
            if flags.any():
                removals.append((product.name, flags))
                remaining &= ~flags
        if remaining.any():
            removals.append(("other", remaining))
        return removals

    def _all_but(self, removals: Sequence[tuple[str, Flags]], chosen: Sequence[int]) -> Flags:
        pinned = np.ones(self._graph.classes, dtype=bool)
        for index in chosen:
            pinned &= ~removals[index][1]
        return pinned

    def _bisect(
        self, removals: Sequence[tuple[str, Flags]], among: list[int], accepted: list[int], case: int
    ) -> list[int]:
        """Accept what passes together with all accepted so far, by halves; return what fails on its own."""
        alive = self._choose(self._all_but(removals, accepted + among))
        if self._tried(alive, case)[2].passed:
            accepted.extend(among)
            return []
        if len(among) == 1:
            return among
        middle = len(among) // 2
        return [
            *self._bisect(removals, among[:middle], accepted, case),
            *self._bisect(removals, among[middle:], accepted, case),
        ]


def accept(among: Sequence[T], accepted: list[T], passes: Callable[[list[T]], bool]) -> list[T]:
    """Add to `accepted` what passes together with all that is in it so far, by halves; return what fails on its own."""
    if not among:
        return []
    if passes([*accepted, *among]):
        accepted.extend(among)
        return []
    if len(among) == 1:
        return list(among)
    middle = len(among) // 2
    return [*accept(among[:middle], accepted, passes), *accept(among[middle:], accepted, passes)]
