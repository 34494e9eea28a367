"""What a rule sees of a graph: questions, and ids for channels that nothing has named yet."""

from __future__ import annotations

import numpy as np
from torch import Tensor, fx

from compactmtl.graph.effect import NOT_FOLLOWED, Binding, Key, Moved, Pin
from compactmtl.graph.groups import Role
from compactmtl.graph.probe import Samples
from compactmtl.graph.questions import Questions
from compactmtl.graph.space import Ids


class View(Questions):
    """A rule asks here and returns an `Effect`; it changes no answer that another rule has been given.

    `fresh` and `grouped` number new channels, `bound` those of a parameter's dimension at first sight, the same ones at
    every call. Ids that no effect takes up belong to no tensor.
    """

    def fresh(self, count: int) -> Ids:
        """Ids of channels that no tensor has carried yet, (count,)."""
        return self._state.space.fresh(count)

    def bound(self, name: str, dim: int) -> Ids:
        """The ids of a dimension of a parameter or buffer."""
        return self._state.bind(name, dim).ids

    def grouped(self, name: str, groups: int, role: Role) -> Binding:
        """The binding of all inputs of a grouped convolution, whose weight's dimension 1 each group counts anew.

        Of a transposed one they are its outputs. It is the effect's to say: until then the plain one stays.
        """
        binding = self._state.bindings.get((name, 1))
        if binding is not None and binding.groups > 1:
            return binding
        size = int(self._state.named[name].shape[1]) * groups
        return Binding(name, 1, self.fresh(size), frozenset((role,)), groups)

    def keys_of(self, ids: Ids) -> tuple[Key, ...]:
        """The dimensions of parameters whose ids are these very ones."""
        return tuple(key for key, binding in self._state.bindings.items() if binding.ids is ids)

    def keys_in(self, node: fx.Node, ids: Ids) -> tuple[Key, ...]:
        """The dimensions of the parameters that a static tensor is made of which hold some of these channels."""
        names = {self.parameter(source) for source in self.static_sources(node)}
        bindings = self._state.bindings.items()
        return tuple(key for key, own in bindings if own.name in names and np.isin(ids, own.ids).any())

    def pins(self, node: fx.Node, reason: str = NOT_FOLLOWED) -> tuple[Pin, ...]:
        """Pins of all channels of a tensor."""
        return tuple(Pin(axis.ids, reason) for axis in self.layout(node))

    def adoptable(self, node: fx.Node, dims: tuple[int, ...], ids: Ids) -> bool:
        """Whether the dimensions `dims` of a tensor that a forward makes, such as zeros, may stand for the channels `ids`.

        Nothing in the graph says where its size comes from; whether it follows the channels is for the proof to say.
        False where it is another kind of tensor, or differs from channel to channel.
        """
        if not self.is_computed(node) or self.layout(node) or self.is_written_through_a_view(node):
            return False
        if any(dim < 0 for dim in dims) or ids.shape != tuple(self.shape(node)[dim] for dim in dims):
            return False
        if any(self.parameter(source) is not None for source in self.static_sources(node)):
            return False
        value = self.tensor(node)
        first = value
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        return bool((value == first).all())

    @property
    def samples(self) -> Samples:
        """What calls without a rule read in a run of the example."""
        assert self._state.samples is not None
        return self._state.samples

    def operands(self, node: fx.Node) -> dict[fx.Node, Tensor] | None:
        """The tensors that a call reads, as they are in a run; None where it reads something else."""
        if self.is_computed(node):
            return {source: self.tensor(source) for source in node.all_input_nodes}
        return self.samples.values(node)

    def moved(self, node: fx.Node) -> Moved | None:
        """Where the entries of a call that only moves them come from."""
        return self._state.effects[node].moved if self.follows(node) else None

    def scored(self, heads: Ids) -> Ids | None:
        """Queries and keys (H, any) of the product whose heads these are (H,), None where they are of something else."""
        known = (rows for own, rows in self._state.scored if np.array_equal(own, heads))
        return next(known, None)

    def parts(self, node: fx.Node) -> tuple[Ids, ...]:
        """Of a call of several results, the places in its axis of the entries of each; empty for all others."""
        return self._state.effects[node].parts if self.follows(node) else ()

    def is_pair(self, node: fx.Node) -> bool:
        """Whether a call gives values and their places, channel by channel, as max_pool2d_with_indices does."""
        return self.follows(node) and self._state.effects[node].is_pair
