"""The passes over the calls of a traced graph: each asks the calls' rules and applies what they answer (see `Rule`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from compactmtl.graph.aliases import writes_elsewhere
from compactmtl.graph.calls import operator, overload
from compactmtl.graph.cost import MacCounter
from compactmtl.graph.effect import NOT_FOLLOWED, Effect, Use
from compactmtl.graph.full_width import find_full_width
from compactmtl.graph.probe import Samples, can_be_probed
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules.scales import find_scales
from compactmtl.graph.space import Axis
from compactmtl.graph.stages import first_line
from compactmtl.graph.state import State
from compactmtl.graph.static import confirm, static_values
from compactmtl.graph.trace import Traced
from compactmtl.graph.view import View

# Whether an exception in a rule is raised. Otherwise its operator is a barrier, which is always right: a user is
# better served by a channel that stays than by a traceback. Tests raise, so that no fault hides behind a barrier.
STRICT = False


def analyse(
    traced: Traced, rules: Mapping[str, Rule], fallback: Rule, example_inputs: Sequence[Tensor]
) -> State:
    """All three passes, with the rules by operator and the one for operators that have none."""
    passes = _Passes(traced, rules, fallback)
    passes.layouts(example_inputs)
    passes.constants(example_inputs)
    passes.uses()
    return passes.state


class _Passes:
    def __init__(self, traced: Traced, rules: Mapping[str, Rule], fallback: Rule) -> None:
        self.state = State(traced)
        self._view = View(self.state)
        self._rules = {
            node: rules.get(overload(node)) or rules.get(operator(node), fallback) for node in traced.calls
        }
        self._fallback = fallback

    # -- layouts -----------------------------------------------------------------------------------

    def layouts(self, example_inputs: Sequence[Tensor]) -> None:
        """Where which coordinates lie, and what goes together."""
        state, traced = self.state, self.state.traced
        state.static.update(static_values(traced))
        unknown = (node for node in traced.calls if self._rules[node] is self._fallback)
        tried = frozenset(node for node in unknown if node not in state.static and can_be_probed(node))
        state.samples = Samples(traced, example_inputs, tried)
        for node, (name, value) in traced.tensors.items():
            if value.ndim and (value.is_floating_point() or value.is_complex()):
                dims = [dim for dim in range(value.ndim) if value.shape[dim] > 1] or [0]
                state.layouts[node] = tuple(Axis((dim,), state.bind(name, dim).ids) for dim in dims)
        for node in traced.calls:
            effect = "it writes into another tensor" if writes_elsewhere(node) else self._effect(node)
            if isinstance(effect, str):
                state.layouts[node] = ()
                self._bar(node, effect)
                continue
            state.apply(node, effect)
            several = len(effect.layout) > 1 and node not in state.static
            if several:
                self._pin(node, f"{operator(node)}: {NOT_FOLLOWED}")
            elif node in traced.hazards:
                self._pin(node, "written through a view")
        modules, unions, pins = find_full_width(self._view)
        state.full_width.update(modules)
        state.scales.update(find_scales(self._view, traced.fractions))
        for one, other in unions:
            state.space.union(one, other)
        for node, pin in pins:
            state.space.pin(pin.ids, f"{operator(node)}: {pin.reason}")
        for node in traced.outputs:
            self._pin(node, "an output of the model")
        state.samples = None

    def _effect(self, node: fx.Node) -> Effect | str:
        """What the rule says of a call; where it fails, that it does."""
        try:
            return self._rules[node].layout(self._view, node)
        except Exception as error:
            return self._failure(error)

    @staticmethod
    def _failure(error: Exception) -> str:
        if STRICT:
            raise error
        return f"its rule fails ({first_line(error)})"

    def _bar(self, node: fx.Node, reason: str) -> None:
        """Make a barrier of a call: what it reads and gives stays."""
        state = self.state
        state.effects.pop(node, None)
        state.barriers[node] = reason
        reason = f"{operator(node)}: {reason}"
        for touched in (node, *self._view.tensors_in(node)):
            self._pin(touched, reason)
            name = self._view.parameter(touched)
            if name is not None and self._view.layout(touched):
                state.not_pruned.setdefault(name, reason)

    def _pin(self, node: fx.Node, reason: str) -> None:
        for axis in self._view.layout(node):
            self.state.space.pin(axis.ids, reason)

    # -- constants ---------------------------------------------------------------------------------

    def constants(self, example_inputs: Sequence[Tensor]) -> None:
        """Forward: which coordinates hold one value whatever the input, confirmed by a run."""
        state = self.state
        for node in [*state.traced.tensors, *state.static]:
            axis = self._view.axis(node)
            if axis is None or node in state.traced.hazards or not isinstance(node.meta.get("val"), Tensor):
                continue
            if self._view.tensor(node).numel() >= axis.ids.size:
                state.constants[node], state.values[node] = self._view.uniform(node, axis)
        with MacCounter() as counter:
            for node, value in state.traced.run(example_inputs):
                state.macs[node] = counter.take()
                self._find_constant(node, value)
                counter.take()  # what the search did is no part of the model

    def _find_constant(self, node: fx.Node, value: Any) -> None:
        state, axis = self.state, self._view.axis(node)
        if axis is None or not self._view.follows(node) or node in state.traced.hazards:
            return
        if node in state.static or not (isinstance(value, Tensor) or self._view.parts(node)):
            return
        try:
            flags = self._rules[node].constant(self._view, node)
        except Exception as error:
            self._bar(node, self._failure(error))
            return
        if not isinstance(value, Tensor):
            state.values[node] = np.zeros(flags.shape)  # its parts are held to what they are in the run
        elif flags.any():
            flags, state.values[node] = confirm(value, axis, flags)
        state.constants[node] = flags

    # -- uses --------------------------------------------------------------------------------------

    def uses(self) -> None:
        """Backward: which coordinates some output depends on."""
        state = self.state
        for node in state.traced.outputs:
            state.use(Use(node))
        for node in reversed(state.traced.calls):
            if node in state.static:
                continue
            for use in self._used(node):
                state.use(use)

    def _used(self, node: fx.Node) -> list[Use]:
        """What a call reads; all of it where no rule can say."""
        state, axis = self.state, self._view.axis(node)
        if self._view.follows(node):
            flags = np.ones(0, dtype=bool)
            if axis is not None:
                written = node in state.traced.hazards
                flags = np.full(axis.ids.shape, written) | state.uses.get(node, np.zeros(1, dtype=bool))
            try:
                return [self._spread(use) for use in self._rules[node].used(self._view, node, flags)]
            except Exception as error:
                self._bar(node, self._failure(error))
        return [Use(source) for source in self._view.tensors_in(node)]

    def _spread(self, use: Use) -> Use:
        """The same with its flags in the shape of the tensor's axis."""
        axis = self._view.axis(use.node)
        return use if axis is None else replace(use, flags=np.broadcast_to(use.flags, axis.ids.shape))
