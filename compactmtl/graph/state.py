"""All that an analysis knows of one traced graph. Only the analysis writes it; everyone else asks `Questions`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from compactmtl.graph.calls import operator
from compactmtl.graph.effect import Binding, Effect, FullWidth, Key, Product, Scaled, Use
from compactmtl.graph.probe import Samples
from compactmtl.graph.space import Flags, Ids, Layout, Space
from compactmtl.graph.trace import Traced

UNOWNED = "its weights belong to no module of the model, such as layers in a plain list, a closure or a hook"


@dataclass
class State:
    """Coordinates, constants and uses of every tensor of one traced graph."""

    traced: Traced
    space: Space = field(default_factory=Space)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    effects: dict[fx.Node, Effect] = field(default_factory=dict)  # of every call that a rule follows
    barriers: dict[fx.Node, str] = field(default_factory=dict)
    bindings: dict[Key, Binding] = field(default_factory=dict)
    products: dict[fx.Node, Product] = field(default_factory=dict)
    sized: dict[fx.Node, Ids] = field(default_factory=dict)
    made: list[Ids] = field(default_factory=list)
    joined: list[tuple[Ids, str]] = field(default_factory=list)
    projected: list[tuple[Ids, Ids]] = field(default_factory=list)
    followers: list[tuple[Ids, Ids]] = field(default_factory=list)
    scored: list[tuple[Ids, Ids]] = field(default_factory=list)
    unforced: list[Ids] = field(default_factory=list)
    not_pruned: dict[str, str] = field(default_factory=dict)
    full_width: dict[str, FullWidth] = field(default_factory=dict)
    scales: dict[fx.Node, Scaled] = field(default_factory=dict)  # computed from a width
    static: dict[fx.Node, Tensor | None] = field(default_factory=dict)  # of parameters and numbers alone
    constants: dict[fx.Node, Flags] = field(default_factory=dict)
    values: dict[fx.Node, NDArray[np.float64]] = field(default_factory=dict)
    uses: dict[fx.Node, Flags] = field(default_factory=dict)
    exact: dict[fx.Node, Flags] = field(default_factory=dict)  # used by value: not to be dropped unless 0
    macs: dict[fx.Node, int] = field(default_factory=dict)  # of each call, for all of the example's batch
    samples: Samples | None = None  # of calls without a rule, while layouts are found
    named: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.named = dict(self.traced.tensors.values())

    def bind(self, name: str, dim: int) -> Binding:
        """The binding of a parameter's dimension, made at first sight."""
        binding = self.bindings.get((name, dim))
        if binding is None:
            binding = Binding(name, dim, self.space.fresh(int(self.named[name].shape[dim])))
            self.install(binding)
        return binding

    def install(self, binding: Binding) -> None:
        """Take a new binding. Tensors that no module holds cannot be cut: what they read and write stays."""
        self.bindings[binding.name, binding.dim] = binding
        if binding.name in self.traced.unowned:
            self.space.pin(binding.ids, UNOWNED)

    def apply(self, node: fx.Node, effect: Effect) -> None:
        """Take what the rule of a call says. The one place where an effect changes the state."""
        name = operator(node)
        for one, other in effect.unions:
            self.space.union(one, other)
        for pin in effect.pins:
            self.space.pin(pin.ids, f"{name}: {pin.reason}")
        for grid in effect.grids:
            self.space.grid(grid, name)
        for ids in effect.units:
            self.space.unit(ids)
        for binding in effect.bindings:
            if self.bindings.get((binding.name, binding.dim)) is not binding:
                self.install(binding)
        for key, role in effect.roles:
            own = self.bindings[key]
            self.bindings[key] = replace(own, roles=own.roles | {role})
        for tensor, axis in effect.adopted:
            self.layouts[tensor] = (axis,)
            self.sized[tensor] = axis.ids
        self.products.update(effect.products)
        self.sized.update(effect.sized)
        self.not_pruned.update(effect.not_pruned)
        self.made += effect.made
        self.joined += effect.joined
        self.projected += effect.projected
        self.followers += effect.followers
        self.scored += effect.scored
        self.unforced += effect.unforced
        self.layouts[node] = effect.layout
        self.effects[node] = effect

    def use(self, use: Use) -> None:
        """Mark entries of a tensor's axis as used; a tensor without an axis needs no mark."""
        layout = self.layouts.get(use.node, ())
        if len(layout) != 1:
            return
        none = np.zeros(layout[0].ids.shape, dtype=bool)
        for marks in (self.uses, self.exact) if use.exact else (self.uses,):
            marks[use.node] = marks.get(use.node, none) | use.flags

    def forget_values(self) -> None:
        """Let go of all values of tensors, which nothing reads after the passes but an edit; their shapes stay."""
        tensors = {node: (name, value.to("meta")) for node, (name, value) in self.traced.tensors.items()}
        self.traced = replace(self.traced, tensors=tensors)
        self.named = dict(tensors.values())
        self.static = {
            node: None if value is None else value.to("meta") for node, value in self.static.items()
        }
