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
    """A call that divides by the number of these channels, or of each of `groups` equal parts of them, and what it does."""

    ids: Ids
    reason: str
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Scaled:
    """An attention that divides by a power of its width: the layer that makes its queries, and their ids.

    `computed`: the graph shows a number, and it is an assumption that the forward computes it from the width.
    """

    maker: fx.Node
    ids: Ids
    power: float = 0.5
    computed: bool = False


@dataclass(frozen=True, eq=False)
class FullWidth:
    """A module that runs at its original width, and where its channel lies, counted from the last dimension (-1).

    `ids` (N,) are its channels; `parameters` are the names and dimensions that hold one entry for each; `source` is what it
    reads. Of `groups` parts that it counts apart, whole ones may also leave: then it is cut, and runs at no more than its width.
    """

    module: str
    ids: Ids
    input_dim: int
    output_dim: int
    parameters: tuple[Key, ...]
    source: fx.Node
    groups: int = 1

    def is_cut(self, kept: Flags) -> bool:
        """Whether the module loses parameters where only the `kept` channels stay, (N,), and not its input alone."""
        rows = kept.reshape(self.groups, -1)
        return self.groups > 1 and bool((rows.all(1) | ~rows.any(1)).all())


@dataclass(frozen=True)
class Kept:
    """Where the entries of one dimension of an operand lie in the result.

    `dim` is the dimension of the result, None where it has none: entries that differ only there are mixed. Each entry is
    `repeat` entries of the result, one after another or, `tiled`, all entries again and again. `joined` entries of the
    operand, one after another, are mixed into each of the result's.
    """

    dim: int | None
    repeat: int = 1
    joined: int = 1
    tiled: bool = False

    def forward(self, flags: Flags) -> Flags:
        """Entries of the result that stand for the flagged ones of the operand."""
        if self.joined > 1:
            return np.asarray(flags.reshape(-1, self.joined).any(1))
        return np.tile(flags, self.repeat) if self.tiled else np.repeat(flags, self.repeat)


@dataclass(frozen=True)
class Followed:
    """One axis of an operand, by its position among the tensors that the call reads, with a `Kept` for each dimension."""

    operand: int
    axis: int
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Learned:
    """What probing found. Entries of the result are zero where those of an operand in `silencing` are, and, with `zero`,
    where those of all that are followed are. `pointwise`: it does the same to every entry of its one operand. `beside` are operands without an axis that hold an entry for each of some
    dimension of the result: (operand, its dimension, the result's)."""

    followed: tuple[Followed, ...] = ()
    silencing: frozenset[int] = frozenset()
    zero: bool = False
    pointwise: bool = False
    beside: tuple[tuple[int, int, int], ...] = ()
    reason: str = ""


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
    followers: tuple[tuple[Ids, Ids], ...] = ()  # (n,) and (n, any): entry i goes where all of row i does
    unforced: tuple[Ids, ...] = ()  # channels that do not go because what writes them is zero
    scored: tuple[
        tuple[Ids, Ids], ...
    ] = ()  # heads (H,) of a product of queries and keys, and their ids (H, any)
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
    learned: Learned | None = None  # of an operator without a rule: what it was seen to do
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
