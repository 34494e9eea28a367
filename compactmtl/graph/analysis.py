"""The state that operator rules read and write while a graph is analysed.

Three passes over the calls: `layout` (which coordinates lie where, what goes together), `constant`
(forward: which coordinates hold one value whatever the input) and `used` (backward: which coordinates
some output depends on). An operator without a rule is a barrier: what enters it stays and is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.aliases import writes_elsewhere
from compactmtl.graph.calls import operator, overload
from compactmtl.graph.cost import MacCounter
from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags, Ids, Layout, Space
from compactmtl.graph.static import confirm, static_values
from compactmtl.graph.trace import Traced, first_line
from compactmtl.graph.wide import Wide, find_wide

UNOWNED = "its weights belong to no module of the model, such as layers in a plain list, a closure or a hook"
# Whether an exception in a rule is raised. Otherwise its operator is a barrier, which is always right: a user is
# better served by a channel that stays than by a traceback. Tests raise, so that no fault hides behind a barrier.
STRICT = False


@dataclass
class Binding:
    """One dimension of a parameter or buffer whose entries are coordinates."""

    name: str
    dim: int
    ids: Ids
    roles: set[Role] = field(default_factory=set)
    groups: int = 1  # of a grouped convolution, where the dimension is each group's own: (groups * its size)


@dataclass(frozen=True)
class Product:
    """A convolution, linear or recurrent layer: what it costs and where constants of its input can be folded.

    `outputs` (O,) and `inputs` (I,) are ids; MACs are `scale` * outputs kept * inputs kept. A depthwise
    layer has `inputs` None. `node_in` is None where the input's channels are not tracked. `weight` is None
    where the weight is computed from parameters.
    """

    name: str
    kind: str
    weight: str | None
    bias: str | None
    node: fx.Node
    node_in: fx.Node | None
    outputs: Ids
    inputs: Ids | None
    input_size: int
    groups: int
    scale: float
    padded: bool
    folds: bool  # constants of its input can be folded into its bias or merged into a carrier
    rows: bool = True  # the rows of its weight are its outputs


class Rule(Protocol):
    """One family of operators. `layout` returns a reason where it cannot follow the coordinates."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None: ...

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags: ...

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None: ...


class Analysis:
    """Coordinates, constants and uses of every tensor of one traced graph."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.space = Space()
        self.layouts: dict[fx.Node, Layout] = {}
        self.rules: dict[fx.Node, Rule] = {}
        self.barriers: dict[fx.Node, str] = {}
        self.bindings: dict[tuple[str, int], Binding] = {}
        self.products: dict[fx.Node, Product] = {}
        self.constants: dict[fx.Node, Flags] = {}
        self.values: dict[fx.Node, NDArray[np.float64]] = {}
        self.uses: dict[fx.Node, Flags] = {}
        self.exact: dict[fx.Node, Flags] = {}  # used by value: not to be dropped unless 0
        self.kept_whole: dict[str, str] = {}
        self.positions: dict[fx.Node, Ids] = {}  # rearranged: each entry's place in the input
        self.projected: list[
            tuple[Ids, Ids]
        ] = []  # cells (rows, H) and outputs (rows, P) of an LSTM that projects
        self.parts: dict[
            fx.Node, list[Ids]
        ] = {}  # of each of several results, its entries' places in the axis
        self.sized: dict[fx.Node, Ids] = {}  # calls whose arguments count channels -> those channels
        self.scaled: dict[fx.Node, tuple[fx.Node, Ids]] = {}  # attention -> what makes its queries, their ids
        self.counted: dict[
            fx.Node, tuple[Ids, str]
        ] = {}  # divides by the number of these channels; what it does
        self.joined: list[tuple[Ids, str]] = []  # channels that an operator couples, and how
        self.wide: dict[str, Wide] = {}  # modules that can go on at their original width
        self.static: dict[fx.Node, Tensor | None] = {}  # depends on parameters and numbers alone -> value
        self.made: list[
            Ids
        ] = []  # of tensors that a forward makes: gone only with the channels of some layer
        self.macs: dict[fx.Node, int] = {}  # of each call, for all of the example's batch
        self._tensors = dict(traced.tensors.values())

    # -- reading -----------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()

    def axis(self, node: fx.Node) -> Axis | None:
        """The one axis of a tensor, or None where it has none or several."""
        layout = self.layouts.get(node, ())
        return layout[0] if len(layout) == 1 else None

    def parameter(self, node: fx.Node | None) -> str | None:
        """The name of the parameter, buffer or constant that a node is, or None."""
        return self.traced.tensors[node][0] if node in self.traced.tensors else None

    def tensor(self, node: fx.Node) -> Tensor:
        """The value of a node that depends on parameters alone."""
        value = self.traced.tensors[node][1] if node in self.traced.tensors else self.static[node]
        assert value is not None
        return value

    def is_static(self, node: fx.Node) -> bool:
        return node in self.traced.tensors or node in self.static

    def constant(self, node: fx.Node) -> Flags:
        """Which entries of the node's axis are constant, in the axis's shape."""
        axis = self.axis(node)
        assert axis is not None
        return self.constants.get(node, np.zeros(axis.ids.shape, dtype=bool))

    def zero(self, node: fx.Node) -> Flags:
        """Which entries of the node's axis are the constant 0, in the axis's shape."""
        flags = self.constant(node)
        return flags & (self.values[node] == 0) if flags.any() else flags

    def uniform(self, node: fx.Node, axis: Axis) -> tuple[Flags, NDArray[np.float64]]:
        """Entries of one axis of a static tensor that hold one value at all positions, and the values."""
        moved = self.tensor(node).detach().movedim(axis.dims, tuple(range(len(axis.dims))))
        flat = moved.reshape(axis.ids.size, -1).double().cpu().numpy()
        same: Flags = (flat == flat[:, :1]).all(1)
        return same.reshape(axis.ids.shape), flat[:, 0].reshape(axis.ids.shape)

    def tensors_in(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a call reads, of a split's part the tensor that was split."""
        found = []
        for item in node.all_input_nodes:
            if isinstance(item.meta.get("val"), Tensor):
                found.append(item)
            elif item.op == "call_function":
                found += self.tensors_in(item)
        return found

    # -- writing -----------------------------------------------------------------------------------

    def bind(self, name: str, dim: int, role: Role | None) -> Ids:
        """The ids of a parameter's dimension, made at first sight."""
        binding = self.bindings.get((name, dim))
        if binding is None:
            size = int(self._tensors[name].shape[dim])
            binding = self.bindings[name, dim] = Binding(name, dim, self.space.fresh(size))
            self._keep_unowned(name, binding.ids)
        if role is not None:
            binding.roles.add(role)
        return binding.ids

    def mark(self, node: fx.Node, ids: Ids, role: Role) -> None:
        """Say what the parameters that a static tensor is made of do with the channels `ids`."""
        names = {self.parameter(current) for current in self.static_sources(node)}
        for binding in self.bindings.values():
            if binding.name in names and np.isin(ids, binding.ids).any():
                binding.roles.add(role)

    def bind_grouped(self, name: str, groups: int, role: Role = "consumer") -> Ids:
        """The ids of all inputs of a grouped convolution, whose weight's dimension 1 each group counts anew.

        Of a transposed one they are its outputs.
        """
        binding = self.bindings.get((name, 1))
        if binding is None or binding.groups == 1:
            size = int(self._tensors[name].shape[1]) * groups
            binding = Binding(name, 1, self.space.fresh(size), {role}, groups)
            self.bindings[name, 1] = binding
            self._keep_unowned(name, binding.ids)
        return binding.ids

    def adopt(self, node: fx.Node, dims: tuple[int, ...], ids: Ids) -> bool:
        """Take the dimensions `dims` of a tensor that a forward makes, such as zeros, for the channels `ids` that it meets.

        Nothing in the graph says where its size comes from; whether it follows the channels is for the proof to say.
        False where it is another kind of tensor, or differs from channel to channel.
        """
        if node not in self.static or self.layouts.get(node) or node in self.traced.hazards:
            return False
        if any(d < 0 for d in dims) or ids.shape != tuple(self.shape(node)[d] for d in dims):
            return False
        if self.static_sources(node) & set(self.traced.tensors):
            return False
        value = self.tensor(node)
        first = value
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        if not bool((value == first).all()):
            return False
        self.layouts[node] = (Axis(dims, ids),)
        self.sized[node] = ids
        return True

    def static_sources(self, node: fx.Node) -> set[fx.Node]:
        """All static tensors that a static one is made of, itself included."""
        pending, seen = [node], set[fx.Node]()
        while pending:
            current = pending.pop()
            if current not in seen:
                seen.add(current)
                pending += filter(self.is_static, current.all_input_nodes)
        return seen

    def _keep_unowned(self, name: str, ids: Ids) -> None:
        """Tensors that no module holds cannot be cut: what they read and write stays."""
        if name in self.traced.unowned:
            before, self.space.cause = self.space.cause, UNOWNED
            self.space.pin(ids)
            self.space.cause = before

    def pin(self, node: fx.Node) -> None:
        for axis in self.layouts.get(node, ()):
            self.space.pin(axis.ids)

    def use(self, node: fx.Node, flags: Flags) -> None:
        """Mark entries of a node's axis as used; a node without an axis needs no mark."""
        axis = self.axis(node)
        if axis is not None:
            self.uses[node] = self.uses.get(node, np.zeros(axis.ids.shape, dtype=bool)) | flags

    def use_exactly(self, node: fx.Node, flags: Flags) -> None:
        """Mark entries as used by an operator that cannot do without their value unless it is 0."""
        self.use(node, flags)
        axis = self.axis(node)
        if axis is not None:
            self.exact[node] = self.exact.get(node, np.zeros(axis.ids.shape, dtype=bool)) | flags

    def use_all(self, node: fx.Node) -> None:
        axis = self.axis(node)
        if axis is not None:
            self.use(node, np.ones(axis.ids.shape, dtype=bool))

    # -- passes ------------------------------------------------------------------------------------

    def forget_values(self) -> None:
        """Let go of all values of tensors, which nothing reads after the passes but an edit; their shapes stay."""
        tensors = {node: (name, value.to("meta")) for node, (name, value) in self.traced.tensors.items()}
        self.traced = replace(self.traced, tensors=tensors)
        self._tensors = dict(tensors.values())
        self.static = {
            node: None if value is None else value.to("meta") for node, value in self.static.items()
        }

    def run(self, rules: dict[str, Rule], fallback: Rule, example_inputs: Sequence[Tensor]) -> None:
        """All three passes."""
        self.static.update(static_values(self.traced))
        self._layouts(rules, fallback)
        self._forward(example_inputs)
        self._backward()

    def _layouts(self, rules: dict[str, Rule], fallback: Rule) -> None:
        for node, (name, value) in self.traced.tensors.items():
            if value.ndim and value.is_floating_point():
                dims = [dim for dim in range(value.ndim) if value.shape[dim] > 1] or [0]
                self.layouts[node] = tuple(Axis((dim,), self.bind(name, dim, None)) for dim in dims)
        for node in self.traced.calls:
            rule = rules.get(overload(node)) or rules.get(operator(node), fallback)
            self.space.at = operator(node)
            self.space.cause = f"{operator(node)}: its channels are not followed"
            reason = "it writes into another tensor" if writes_elsewhere(node) else self._laid_out(rule, node)
            if reason is not None:
                self.space.cause = f"{operator(node)}: {reason}"
                self.barriers[node] = reason
                self.layouts[node] = ()
                for source in self.tensors_in(node):
                    self.pin(source)
                    self._note_kept(source, f"{operator(node)}: {reason}")
            else:
                self.rules[node] = rule
                several = len(self.layouts.get(node, ())) > 1 and node not in self.static
                if several or node in self.traced.hazards:
                    self.space.cause = "written through a view" if not several else self.space.cause
                    self.pin(node)
        find_wide(self)
        self.space.cause = "an output of the model"
        for node in self.traced.outputs:
            self.pin(node)

    def _laid_out(self, rule: Rule, node: fx.Node) -> str | None:
        """What the rule's layout says; where it fails, that it does: what it has noted of the call is forgotten."""
        try:
            return rule.layout(self, node)
        except Exception as error:
            if STRICT:
                raise
            for noted in (self.products, self.positions, self.sized, self.scaled, self.counted, self.parts):
                noted.pop(node, None)
            return f"its rule fails ({first_line(error)})"

    def _bar(self, node: fx.Node, error: Exception) -> None:
        """Make a barrier of a call whose rule fails after the layouts are known: what it reads and gives stays."""
        if STRICT:
            raise error
        self.rules.pop(node, None)
        self.counted.pop(node, None)
        reason = self.barriers[node] = f"its rule fails ({first_line(error)})"
        self.space.cause = f"{operator(node)}: {reason}"
        for touched in (node, *self.tensors_in(node)):
            self.pin(touched)
            self._note_kept(touched, self.space.cause)

    def stop(self, node: fx.Node, ids: Ids, reason: str) -> None:
        """The channels `ids` have to stay for an operator that mixes them."""
        self.space.cause = f"{operator(node)}: {reason}"
        self.space.pin(ids)

    def _note_kept(self, source: fx.Node, reason: str) -> None:
        name = self.parameter(source)
        if name is not None and self.layouts.get(source):
            self.kept_whole.setdefault(name, reason)

    def _forward(self, example_inputs: Sequence[Tensor]) -> None:
        for node in [*self.traced.tensors, *self.static]:
            axis = self.axis(node)
            if axis is None or node in self.traced.hazards or not isinstance(node.meta.get("val"), Tensor):
                continue
            if self.tensor(node).numel() >= axis.ids.size:
                self.constants[node], self.values[node] = self.uniform(node, axis)
        with MacCounter() as counter:
            for node, value in self.traced.run(example_inputs):
                self.macs[node] = counter.take()
                self._find_constant(node, value)
                counter.take()  # what the search did is no part of the model

    def _find_constant(self, node: fx.Node, value: Any) -> None:
        axis = self.axis(node)
        rule = self.rules.get(node)
        skip = axis is None or rule is None or node in self.traced.hazards or node in self.static
        if skip or not (isinstance(value, Tensor) or node in self.parts):
            return
        assert axis is not None and rule is not None
        try:
            flags = rule.constant(self, node)
        except Exception as error:
            self._bar(node, error)
            return
        if not isinstance(value, Tensor):
            self.values[node] = np.zeros(flags.shape)  # its parts are held to what they are in the run
        elif flags.any():
            flags, self.values[node] = confirm(value, axis, flags)
        self.constants[node] = flags

    def _backward(self) -> None:
        for node in self.traced.outputs:
            self.use_all(node)
        for node in reversed(self.traced.calls):
            rule = self.rules.get(node)
            axis = self.axis(node)
            if node in self.static:
                continue
            if rule is None:
                for source in self.tensors_in(node):
                    self.use_all(source)
                continue
            flags = np.ones(0, dtype=bool)
            if axis is not None:
                written = node in self.traced.hazards
                flags = np.full(axis.ids.shape, written) | self.uses.get(node, np.zeros(1, dtype=bool))
            try:
                rule.used(self, node, flags)
            except Exception as error:
                self._bar(node, error)
                for source in self.tensors_in(node):
                    self.use_all(source)
