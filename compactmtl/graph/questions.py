"""What can be asked about one traced graph, call by call: shapes, axes, constants, uses. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.effect import Binding, Counted, Learned, Product, Scaled
from compactmtl.graph.space import Axis, Flags, Ids, Layout
from compactmtl.graph.state import State


class Questions:
    """Answers about the tensors and calls of a graph; nodes are those of `calls` and what they read."""

    def __init__(self, state: State) -> None:
        self._state = state

    # -- calls -------------------------------------------------------------------------------------

    @property
    def calls(self) -> list[fx.Node]:
        """All calls, in the order in which they run."""
        return self._state.traced.calls

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the model returns, each once."""
        return self._state.traced.outputs

    @property
    def barriers(self) -> Mapping[fx.Node, str]:
        """Calls that cannot be followed -> why."""
        return self._state.barriers

    @property
    def counted(self) -> dict[fx.Node, Counted]:
        """Calls that divide by a number of channels, such as norms over the channel."""
        effects = self._state.effects.items()
        return {node: effect.counted for node, effect in effects if effect.counted is not None}

    @property
    def scaled(self) -> dict[fx.Node, Scaled]:
        """Attentions that divide by a power of a width that channels may leave."""
        effects = self._state.effects.items()
        known = {node: effect.scaled for node, effect in effects if effect.scaled is not None}
        return self._state.scales | known

    @property
    def sized(self) -> Mapping[fx.Node, Ids]:
        """Calls whose arguments count channels -> those channels."""
        return self._state.sized

    @property
    def products(self) -> tuple[Product, ...]:
        """All convolutions, linear and recurrent layers, in the order of their calls."""
        return tuple(self._state.products.values())

    def follows(self, node: fx.Node) -> bool:
        """Whether a rule follows the channels of a call."""
        return node in self._state.effects

    def learned(self, node: fx.Node) -> Learned | None:
        """What an operator without a rule was seen to do."""
        return self._state.effects[node].learned if self.follows(node) else None

    def reshapes(self, node: fx.Node) -> bool:
        """Whether a call takes the sizes of its result as numbers, and its channels are followed."""
        return self.follows(node) and self._state.effects[node].reshapes

    def product(self, node: fx.Node) -> Product | None:
        """The layer that a call, or the weight of a recurrent layer, stands for."""
        return self._state.products.get(node)

    def tensors_in(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a call reads, of a split's part the tensor that was split."""
        read = []
        for item in node.all_input_nodes:
            if isinstance(item.meta.get("val"), Tensor):
                read.append(item)
            elif item.op == "call_function":
                read += self.tensors_in(item)
        return read

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The dimensions of all parameters and buffers that hold channels."""
        return tuple(self._state.bindings.values())

    def binding(self, name: str, dim: int) -> Binding | None:
        """What a dimension of a parameter or buffer holds."""
        return self._state.bindings.get((name, dim))

    # -- tensors -----------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a tensor, () where a call gives several."""
        value = node.meta.get("val")
        return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()

    def layout(self, node: fx.Node) -> Layout:
        """All axes of a tensor. Only static tensors have more than one."""
        return self._state.layouts.get(node, ())

    def axis(self, node: fx.Node) -> Axis | None:
        """The one axis of a tensor, or None where it has none or several."""
        layout = self.layout(node)
        return layout[0] if len(layout) == 1 else None

    def parameter(self, node: fx.Node | None) -> str | None:
        """The name of the parameter, buffer or constant that a node is, or None."""
        tensors = self._state.traced.tensors
        return tensors[node][0] if node in tensors else None

    def is_static(self, node: fx.Node) -> bool:
        """Whether a tensor depends on parameters and numbers alone."""
        return node in self._state.traced.tensors or node in self._state.static

    def is_computed(self, node: fx.Node) -> bool:
        """Whether a call computes a static tensor."""
        return node in self._state.static

    def is_written_through_a_view(self, node: fx.Node) -> bool:
        """Whether a tensor is written under another name: nothing may be assumed of its values."""
        return node in self._state.traced.hazards

    def tensor(self, node: fx.Node) -> Tensor:
        """The value of a static tensor."""
        tensors = self._state.traced.tensors
        value = tensors[node][1] if node in tensors else self._state.static[node]
        assert value is not None
        return value

    def static_sources(self, node: fx.Node) -> set[fx.Node]:
        """All static tensors that a static one is made of, itself included."""
        pending, sources = [node], set[fx.Node]()
        while pending:
            current = pending.pop()
            if current not in sources:
                sources.add(current)
                pending += filter(self.is_static, current.all_input_nodes)
        return sources

    def macs_of(self, node: fx.Node) -> int:
        """MACs of a call, for all of the example's batch."""
        return self._state.macs.get(node, 0)

    # -- constants and uses, in the shape of the tensor's axis -----------------------------------------

    def constant(self, node: fx.Node) -> Flags:
        """Which entries hold one value whatever the input."""
        return self._marked(self._state.constants, node)

    def values(self, node: fx.Node) -> NDArray[np.float64]:
        """The values of constant entries; what stands elsewhere says nothing. Raises KeyError where none is constant."""
        return self._state.values[node]

    def zero(self, node: fx.Node) -> Flags:
        """Which entries are the constant 0."""
        flags = self.constant(node)
        return flags & (self.values(node) == 0) if flags.any() else flags

    def used(self, node: fx.Node) -> Flags:
        """Which entries some output depends on."""
        return self._marked(self._state.uses, node)

    def used_exactly(self, node: fx.Node) -> Flags:
        """Which entries something reads that cannot do without their value unless it is 0."""
        return self._marked(self._state.exact, node)

    def _marked(self, marks: Mapping[fx.Node, Flags], node: fx.Node) -> Flags:
        axis = self.axis(node)
        assert axis is not None
        return marks.get(node, np.zeros(axis.ids.shape, dtype=bool))

    def uniform(self, node: fx.Node, axis: Axis) -> tuple[Flags, NDArray[np.float64]]:
        """Entries of one axis of a static tensor that hold one value at all positions, and the values."""
        moved = self.tensor(node).detach().movedim(axis.dims, tuple(range(len(axis.dims))))
        real = moved.abs() if moved.is_complex() else moved
        flat = real.reshape(axis.ids.size, -1).double().cpu().numpy()
        # of complex numbers only zeros are told
        same: Flags = (flat == (0 if moved.is_complex() else flat[:, :1])).all(1)
        return same.reshape(axis.ids.shape), flat[:, 0].reshape(axis.ids.shape)
