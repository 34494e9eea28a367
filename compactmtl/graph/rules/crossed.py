"""Products over positions: attention over channels, and linear attention.

Their matrix has a channel on either side, its rows and its columns, of which an axis can hold one: that of the rows. Where
every reader of the matrix is a product over one of its sides, the other side goes on behind that product. `crossed` finds
the columns of such a matrix from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.calls import arguments, operator, source_of
from compactmtl.graph.effect import Effect, Pin, Use, Uses
from compactmtl.graph.questions import Questions
from compactmtl.graph.rules.labels import Labels, labels_of
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View

PRODUCTS = frozenset(("matmul", "mm", "bmm", "einsum", "tensordot"))
# What leaves each entry of the matrix where it is, and zeros what they are.
_KEEPING = frozenset(
    ("mul", "div", "to", "clone", "contiguous", "detach", "alias", "type_as", "dropout", "lift_fresh_copy")
)
_SOFTMAX = frozenset(("softmax", "_softmax"))


@dataclass(frozen=True, eq=False)
class Crossed:
    """A matrix of two sides: the call that multiplies them, and where rows and columns lie in its result.

    Both axes are (channels,) or (heads, channels), with the same heads. `compared` is the dimension that a softmax was
    taken over on the way, if any.
    """

    product: fx.Node
    rows: Axis
    columns: Axis
    row_source: fx.Node
    column_source: fx.Node
    compared: int | None = None

    def other(self, side: Axis) -> Axis:
        return self.columns if side is self.rows else self.rows


def by_head(entries: NDArray[Any]) -> NDArray[Any]:
    """Entries of a side as (heads, any), of one head where there are none."""
    return entries.reshape(len(entries) if entries.ndim > 1 else 1, -1)


def all_of_head(flags: Flags) -> Flags:
    """Which heads are flagged as a whole, (heads,)."""
    return np.asarray(by_head(flags).all(axis=1), dtype=bool)


def any_of_head(flags: Flags) -> Flags:
    """Which heads have a flagged entry, (heads,)."""
    return np.asarray(by_head(flags).any(axis=1), dtype=bool)


def of_heads(heads: Flags, like: Ids) -> Flags:
    """One flag a head for each entry of a side."""
    return np.broadcast_to(heads[:, None], by_head(like).shape).reshape(like.shape)


def born(graph: Questions, node: fx.Node) -> Crossed | None:
    """The matrix of two sides that a product makes; None where it is another one."""
    if operator(node) not in PRODUCTS:
        return None
    labels = labels_of(graph, node)
    if isinstance(labels, str) or labels.bias is not None or labels.left is labels.right:
        return None
    sides = []
    for operand, of_other in ((labels.left, labels.of_right), (labels.right, labels.of_left)):
        axis = graph.axis(operand)
        if axis is None or graph.is_static(operand):
            return None
        own = [labels.of(operand)[dim] for dim in axis.dims]
        alone = [label for label in own if label not in of_other]
        # heads first, then what this operand alone has
        if len(alone) != 1 or own[-1] != alone[0] or len(own) > 2 or set(own) & labels.contracted:
            return None
        sides.append((own, axis))
    (own, one), (its, other) = sides
    if own[:-1] != its[:-1] or one.ids.shape[:-1] != other.ids.shape[:-1]:
        return None
    placed = [tuple(labels.result.index(label) for label in side) for side, _ in sides]
    if any(dims != tuple(sorted(dims)) for dims in placed):
        return None
    if any(
        axis.ids.shape != tuple(graph.shape(node)[dim] for dim in dims)
        for dims, axis in zip(placed, (one, other), strict=True)
    ):
        return None  # heads that several share
    rows, columns = (Axis(dims, axis.ids) for dims, axis in zip(placed, (one, other), strict=True))
    return Crossed(node, rows, columns, labels.left, labels.right)


def readers(graph: Questions, own: Crossed) -> list[fx.Node] | None:
    """The products that read a matrix over one of its sides; None where anything else reads it."""
    found: list[fx.Node] = []
    pending, seen = [own.product], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if graph.is_written_through_a_view(node) or not node.users:
            return None
        for user in node.users:
            if _keeps(graph, user, node, own):
                pending.append(user)
            elif _side(graph, user, node, own) is not None:
                found.append(user)
            else:
                return None
    return found


def _keeps(graph: Questions, user: fx.Node, node: fx.Node, own: Crossed) -> bool:
    """Whether a reader of the matrix gives the same matrix, scaled, in another type or after a softmax over one side."""
    name, shape = operator(user), graph.shape(node)
    if graph.shape(user) != shape:
        return False
    if name in _SOFTMAX:
        dim = int(arguments(user)["dim"]) % len(shape)
        return dim == own.columns.dims[-1] or (dim == own.rows.dims[-1] and own.rows.ids.ndim > 1)
    if name not in _KEEPING or (name == "div" and user.args[0] is not node):
        return False
    for other in graph.tensors_in(user):
        its = graph.shape(other)
        along = own.columns.dims[-1] - (len(shape) - len(its))
        if other is not node and name != "type_as" and along >= 0 and its[along] > 1:
            return False
    return user.args[0] is node or name in ("mul", "div")


def _side(
    graph: Questions, user: fx.Node, node: fx.Node, own: Crossed
) -> tuple[Labels, fx.Node, Axis] | None:
    """Of a product that reads the matrix: its labels, its other operand, and the side of the matrix that it sums over."""
    if operator(user) not in PRODUCTS:
        return None
    labels = labels_of(graph, user)
    if isinstance(labels, str) or labels.bias is not None or labels.left is labels.right:
        return None
    of_matrix = labels.of(node)
    summed = [side for side in (own.rows, own.columns) if of_matrix[side.dims[-1]] in labels.contracted]
    if len(summed) != 1 or len(labels.contracted) != 1:
        return None
    kept = {of_matrix[dim] for dim in own.other(summed[0]).dims}
    return (
        (labels, labels.right if labels.left is node else labels.left, summed[0])
        if kept <= set(labels.result)
        else None
    )


def crossed(graph: Questions, node: fx.Node) -> Crossed | None:
    """The matrix of two sides that a tensor is, scaled or compared on its way from the product that made it."""
    compared: int | None = None
    while True:
        if operator(node) in PRODUCTS:
            own = followed(graph, node)
            if own is None:
                return None
            return Crossed(own.product, own.rows, own.columns, own.row_source, own.column_source, compared)
        name = operator(node) if node.op == "call_function" else ""
        if name in _SOFTMAX:
            if compared is not None:
                return None
            compared = int(arguments(node)["dim"]) % len(graph.shape(node))
        elif name not in _KEEPING:
            return None
        same = [source for source in graph.tensors_in(node) if graph.shape(source) == graph.shape(node)]
        if len(same) != 1 and name not in ("type_as",):
            return None
        node = source_of(node) if name == "type_as" else same[0]


def followed(graph: Questions, node: fx.Node) -> Crossed | None:
    """The matrix of two sides that a call made, where it was followed as one."""
    own = born(graph, node) if graph.follows(node) else None
    return own if own is not None and _is_rows(graph, node, own) else None


def _is_rows(graph: Questions, node: fx.Node, own: Crossed) -> bool:
    axis = graph.axis(node)
    return axis is not None and axis.dims == own.rows.dims and axis.ids.shape == own.rows.ids.shape


@dataclass(frozen=True, eq=False)
class Reading:
    """A product over one side of a matrix of two: the matrix as the call reads it, the other operand, and both sides.

    `order` are the positions, in the other operand's axis, of the dimensions of the `summed` side.
    """

    matrix: fx.Node
    other: fx.Node
    own: Crossed
    summed: Axis
    result: tuple[int, ...]  # where the side that passes lies in the result
    order: tuple[int, ...] | None  # None where the other operand is not followed head by head

    @property
    def passing(self) -> Axis:
        return self.own.other(self.summed)

    def of_other(self, flags: Flags) -> Flags:
        """Entries of the other operand's axis in the order of the summed side."""
        assert self.order is not None
        return flags.transpose(self.order)


def reading(graph: Questions, node: fx.Node) -> Reading | None:
    """How a product reads a matrix of two sides; None where it does not."""
    if operator(node) not in PRODUCTS:
        return None
    for matrix in graph.tensors_in(node):
        own = crossed(graph, matrix)
        found = None if own is None else _side(graph, node, matrix, own)
        if own is None or found is None:
            continue
        labels, other, summed = found
        of_matrix = labels.of(matrix)
        result = tuple(labels.result.index(of_matrix[dim]) for dim in own.other(summed).dims)
        axis = graph.axis(other)
        order = None
        if axis is not None:
            its = [labels.of(other)[dim] for dim in axis.dims]
            wanted = [of_matrix[dim] for dim in summed.dims]
            if sorted(its) == sorted(wanted):
                order = tuple(its.index(label) for label in wanted)
                if axis.ids.transpose(order).shape != summed.ids.shape:
                    order = None
        if order is None and axis is not None and crossed(graph, other) is not None:
            continue  # a product of two such matrices: the other one may be the one that is read
        return Reading(matrix, other, own, summed, result, order)
    return None


# -- what the rule of a product says -------------------------------------------------------------------


def layout_of_born(graph: Questions, node: fx.Node) -> Effect | None:
    """Of a product that makes a matrix of two sides: its rows."""
    own = born(graph, node)
    if own is None or readers(graph, own) is None:
        return None
    return Effect((own.rows,))


def layout_of_reading(view: View, own: Reading) -> Effect:
    """Of a product over one side: that side goes with the other operand, the other side passes."""
    cross = own.own
    sides = (cross.rows.ids, cross.columns.ids)
    other = view.axis(own.other)
    if own.order is None or other is None:
        reason = "its other operand is not followed head by head"
        return Effect(pins=(*(Pin(ids, reason) for ids in sides), *view.pins(own.other, reason)))
    its = other.ids.transpose(own.order)
    effect = Effect(unions=((own.summed.ids, its),))
    dims, order = tuple(sorted(own.result)), [int(place) for place in np.argsort(own.result)]
    passing = own.passing.ids
    effect += Effect((Axis(dims, np.ascontiguousarray(passing.transpose(order))),))
    if order != sorted(order):
        # Walked in another order from here on, each row has to keep the same columns.
        effect += Effect(grids=(Grid(passing.reshape(-1, passing.shape[-1]), product=True),))
    if passing.ndim > 1:
        unit = np.concatenate([by_head(ids) for ids in (passing, own.summed.ids, its)], axis=1)
        effect += Effect(units=(unit,))
    if cross.compared is not None:
        # A zero that is compared counts as much as any other value: of each head all stay, or none.
        compared = cross.rows if cross.compared == cross.rows.dims[-1] else cross.columns
        heads = by_head(compared.ids)
        effect += Effect(unions=((heads, heads[:, :1]),), unforced=sides)
    return effect


def _zero_sides(view: View, own: Reading) -> tuple[Flags, Flags]:
    """Which entries of the side that is summed, and of the one that passes, are zeros in the matrix."""
    cross = own.own
    rows = view.zero(own.matrix)
    if cross.compared is None:
        columns = view.zero(cross.column_source)
    else:
        columns = np.zeros(cross.columns.ids.shape, dtype=bool)
    return (rows, columns) if own.summed is cross.rows else (columns, rows)


def constant_of_reading(view: View, own: Reading) -> Flags:
    """Zeros where the passing side is zero, or where nothing that is not zero is summed in a head."""
    summed, passing = _zero_sides(view, own)
    nothing = all_of_head(summed | own.of_other(view.zero(own.other)))
    return (passing | of_heads(nothing, own.passing.ids)).transpose(np.argsort(own.result))


def used_of_reading(view: View, own: Reading, used: Flags) -> Uses:
    """What is read of both sides and of the other operand; of the columns at the tensor that they come from."""
    cross = own.own
    if own.order is None or view.axis(own.other) is None:
        yield from (
            Use(own.matrix, exact=True),
            Use(own.other, exact=True),
            Use(cross.column_source, exact=True),
        )
        return
    order = [int(place) for place in np.argsort(own.result)]
    passed = np.asarray(used.transpose(np.argsort(order)))
    zero_summed, zero_passing = _zero_sides(view, own)
    zero_other = own.of_other(view.zero(own.other))
    needed = any_of_head(passed & ~zero_passing)  # heads
    given = any_of_head(~zero_summed & ~zero_other)
    summed = of_heads(needed, own.summed.ids)
    passing = passed & of_heads(given, own.passing.ids)
    yield Use(own.other, (summed & ~zero_summed).transpose(np.argsort(own.order)), exact=True)
    side = summed & ~zero_other
    rows, columns = (side, passing) if own.summed is cross.rows else (passing, side)
    yield Use(own.matrix, rows, exact=True)
    yield Use(cross.column_source, columns, exact=True)


def constant_of_born(view: View, own: Crossed) -> Flags:
    """Rows that are zero, and all of a head whose columns are."""
    nothing = all_of_head(view.zero(own.column_source))
    return view.zero(own.row_source) | of_heads(nothing, own.rows.ids)


def used_of_born(view: View, own: Crossed, used: Flags) -> Uses:
    """What is read of the rows' tensor; of the columns' the readers say it."""
    given = any_of_head(~view.zero(own.column_source))
    yield Use(own.row_source, used & of_heads(given, own.rows.ids), exact=True)
    if any(
        reading(view, node) is None or not view.follows(node) for node in readers(view, own) or (own.product,)
    ):
        yield Use(own.column_source, exact=True)


def macs_of(graph: Questions, node: fx.Node) -> Iterator[tuple[float, Ids, Ids]]:
    """Of a product that makes or reads such a matrix, a head at a time: one MAC for each pair of these channels."""
    read = reading(graph, node) if graph.follows(node) else None
    own = followed(graph, node) if read is None else read.own
    if own is None:
        return
    for rows, columns in zip(by_head(own.rows.ids), by_head(own.columns.ids), strict=True):
        yield 1.0, rows, columns
