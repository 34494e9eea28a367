"""What a rule answers with: frozen records of what one call does to channels. Nothing here changes a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import fx

from compactmtl.graph.groups import Role
from compactmtl.graph.space import Axis, Flags, Grid, Ids, Layout

NOT_FOLLOWED = "its channels are not followed"
ALL: Flags = np.ones(1, dtype=bool)  # every entry of an axis, whatever its shape
Key = tuple[str, int]  # a parameter or buffer by its name, and one of its dimensions


@dataclass(frozen=True, eq=False)
class Binding:
    """One dimension of a parameter or buffer whose entries are coordinates."""

    name: str
    dim: int
    ids: Ids
    roles: frozenset[Role] = frozenset()
    groups: int = 1  # of a grouped convolution, where the dimension is each group's own: (groups * its size)


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class Pin:
    """Coordinates that can never go, and what the operator does that keeps them."""

    ids: Ids
    reason: str = NOT_FOLLOWED


@dataclass(frozen=True, eq=False)
class Moved:
    """Of a call that only moves entries: the tensor that it reads, and where in its flattened axis each entry was."""

    source: fx.Node
    places: Ids


@dataclass(frozen=True, eq=False)
class Counted:
    """A call that divides by the number of these channels, and what it does."""

    ids: Ids
    reason: str


@dataclass(frozen=True, eq=False)
class Scaled:
    """An attention that divides by the root of its width: the layer that makes its queries, and their ids."""

    maker: fx.Node
    ids: Ids


@dataclass(frozen=True, eq=False)
class FullWidth:
    """A module that runs at its original width, and where its channel lies, counted from the last dimension (-1).

    `ids` (N,) are its channels; `parameters` are the names and dimensions that hold one entry for each.
    """

    module: str
    ids: Ids
    input_dim: int
    output_dim: int
    parameters: tuple[Key, ...]


@dataclass(frozen=True, eq=False)
class Effect:
    """What one call does to channels, as its rule's `layout` says. It is applied as a whole, once the rule has returned.

    `layout` are the axes of its result. Fields that hold several are tuples in the order in which they were said.
    Effects add up: the tuples of one behind those of the other, and what only one of them says.
    """

    layout: Layout = ()
    unions: tuple[tuple[Ids, Ids], ...] = ()  # entry i of one goes if and only if entry i of the other goes
    pins: tuple[Pin, ...] = ()
    grids: tuple[Grid, ...] = ()
    units: tuple[Ids, ...] = ()  # each (units, any): a row is a head or group that can go as a whole
    roles: tuple[tuple[Key, Role], ...] = ()  # what parameters do with the channel
    bindings: tuple[Binding, ...] = ()  # of grouped weights, in place of the plain ones
    products: tuple[tuple[fx.Node, Product], ...] = ()  # by the call, or by the weight where it has several
    sized: tuple[tuple[fx.Node, Ids], ...] = ()  # calls whose arguments count channels
    adopted: tuple[tuple[fx.Node, Axis], ...] = ()  # tensors that a forward makes, taken for these channels
    made: tuple[Ids, ...] = ()  # of such tensors: gone only with the channels of some layer
    joined: tuple[tuple[Ids, str], ...] = ()  # channels that an operator couples, and how
    projected: tuple[tuple[Ids, Ids], ...] = ()  # cells (rows, H), outputs (rows, P) of an LSTM that projects
    not_pruned: tuple[tuple[str, str], ...] = ()  # parameters none of whose channels go, with the reason
    parts: tuple[Ids, ...] = ()  # of each of several results, its entries' places in the axis
    counted: Counted | None = None
    scaled: Scaled | None = None
    moved: Moved | None = None
    is_pair: bool = False  # it gives values and their places, channel by channel
    reshapes: bool = False  # it takes the sizes of its result as numbers

    def __post_init__(self) -> None:
        for one, other in self.unions:
            np.broadcast_shapes(
                one.shape, other.shape
            )  # a rule that pairs what does not match fails in the rule

    def __add__(self, other: Effect) -> Effect:
        joint: dict[str, Any] = {}
        for item in fields(self):
            one, two = getattr(self, item.name), getattr(other, item.name)
            joint[item.name] = one + two if isinstance(one, tuple) else two or one
        return Effect(**joint)


@dataclass(frozen=True, eq=False)
class Use:
    """Entries of a tensor's axis that some output of the model depends on; a tensor without an axis needs no mark.

    `flags` are broadcast to the axis. `exact`: the operator cannot do without their value unless it is 0.
    """

    node: fx.Node
    flags: Flags = field(default_factory=lambda: ALL)
    exact: bool = False


Uses = Iterable[Use]
