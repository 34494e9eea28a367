"""Products over a shared dimension: matmul, einsum, tensordot, of two activations or of one and a parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from compactmtl.graph.calls import operator
from compactmtl.graph.effect import ALL, Effect, Pin, Use, Uses
from compactmtl.graph.rule import Rule
from compactmtl.graph.rules import crossed
from compactmtl.graph.rules.labels import Labels, labels_of
from compactmtl.graph.rules.pointwise import own_size
from compactmtl.graph.rules.product import Layer, Operands
from compactmtl.graph.space import Axis, Flags, Grid, Ids
from compactmtl.graph.view import View


class Weighted(Layer):
    """A product with a parameter over its inputs: a linear layer in another spelling. Its constants are not folded."""

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        own = self.operands(view, node)
        shape = view.shape(own.source)
        positions = float(np.prod(shape)) / max(shape[own.in_channel], 1)
        return self.bind(view, node, 1, positions, False, operator(node))

    def operands(self, view: View, node: fx.Node) -> Operands:
        own = self.find(view, node)
        assert own is not None
        return own

    @staticmethod
    def find(view: View, node: fx.Node) -> Operands | None:
        """The layer that the call stands for, or None where it is no such product."""
        labels = labels_of(view, node)
        if isinstance(labels, str):
            return None
        static = [operand for operand in (labels.left, labels.right) if view.is_static(operand)]
        if len(static) != 1 or len(labels.contracted) != 1:
            return None
        weight, source = static[0], labels.left if static[0] is labels.right else labels.right
        (summed,) = labels.contracted
        of_weight, of_source = labels.of(weight), labels.of(source)
        shape = view.shape(weight)
        free = [
            label
            for label, size in zip(of_weight, shape, strict=True)
            if label not in of_source and (size > 1 or len(shape) == 2)
        ]
        several = {label for dim, label in enumerate(of_weight) if own_size(view, weight, dim) > 1}
        if len(free) != 1 or several - {summed, free[0]}:
            return None
        axis = view.axis(source)
        if axis is not None and axis.dims != (of_source.index(summed),):
            return None
        bias = labels.bias
        if bias is not None and view.is_static(bias) and not bool(view.tensor(bias).any()):
            bias = None  # zeros to add to
        elif bias is not None and (
            not view.is_static(bias) or view.shape(bias) != (shape[of_weight.index(free[0])],)
        ):
            return None
        return Operands(
            source,
            weight,
            bias,
            of_source.index(summed),
            labels.result.index(free[0]),
            of_weight.index(free[0]),
            of_weight.index(summed),
        )

    def known_inputs(self, view: View, node: fx.Node) -> Flags:
        return view.constant(self.operands(view, node).source)

    def groups(self, node: fx.Node) -> int:
        return 1

    def _folds(self, view: View, weight_node: fx.Node, groups: int, depthwise: bool, padded: bool) -> bool:
        return False


def _in_order(entries: NDArray[Any], given: list[str], wanted: list[str]) -> NDArray[Any]:
    """Entries on dimensions of `given` labels on those that are wanted: 1 long where they lack one, any where there is one more."""
    more = tuple(place for place, label in enumerate(given) if label not in wanted)
    entries = np.asarray(entries.any(axis=more)) if more else entries
    left = [label for label in given if label in wanted]
    ordered = entries.transpose([left.index(label) for label in wanted if label in left])
    missing = tuple(place for place, label in enumerate(wanted) if label not in left)
    return np.expand_dims(ordered, missing)


class Contraction:
    """Of two activations: the contracted coordinates go together, the others pass. With a parameter: see `Weighted`."""

    _weighted = Weighted()

    def layout(self, view: View, node: fx.Node) -> Effect | str:
        labels = labels_of(view, node)
        if isinstance(labels, str):
            return labels
        if view.is_computed(node):
            return Effect(pins=(*view.pins(labels.left), *view.pins(labels.right)))
        if Weighted.find(view, node) is not None:
            return self._weighted.layout(view, node)
        if labels.bias is not None:
            return "what it adds is not followed"
        over_side = crossed.reading(view, node)
        if over_side is not None:
            return crossed.layout_of_reading(view, over_side)
        matrix = crossed.layout_of_born(view, node)
        if matrix is not None:
            return matrix
        a, b = view.axis(labels.left), view.axis(labels.right)
        of_a = self._of_axis(labels, labels.left, a)
        of_b = self._of_axis(labels, labels.right, b)
        summed = labels.contracted
        if set(of_a) & summed != set(of_b) & summed:
            return "only one of its operands' contracted dimensions is tracked"
        if a is not None and b is not None and set(of_a) & summed and len(of_a) != len(of_b):
            return self._of_all_heads(view, labels, of_a, of_b)
        batch = set(labels.of_left) & set(labels.of_right) & set(labels.result)
        if set(of_a) & summed:
            assert a is not None and b is not None
            if set(of_a) != set(of_b) or not set(of_a) - summed <= batch:
                return "its operands' heads do not match"
            other = b.ids.transpose([of_b.index(label) for label in of_a])
            if a.ids.shape != other.shape:
                return "its operands' heads do not match"
            return Effect(unions=((a.ids, other),)) + self._heads(view, labels, of_a, a, other)
        return self._pass(view, node, labels, batch)

    @staticmethod
    def _of_all_heads(view: View, labels: Labels, of_a: list[str], of_b: list[str]) -> Effect | str:
        """Queries of several heads, and keys that all of them share."""
        few, many = sorted((of_a, of_b), key=len)
        own, other = (labels.left, labels.right) if many is of_a else (labels.right, labels.left)
        axes = view.axis(own), view.axis(other)
        if not set(few) < set(many):
            return "its operands' heads do not match"
        assert axes[0] is not None and axes[1] is not None
        return Effect(unions=((axes[0].ids, _in_order(axes[1].ids, few, many)),))

    @staticmethod
    def _heads(view: View, labels: Labels, own: list[str], axis: Axis, other: Ids) -> Effect:
        """Of a product of queries and keys its heads, which go with all that they are made of."""
        heads = [label for label in own if label not in labels.contracted]
        if len(heads) != 1:
            return Effect()
        where = own.index(heads[0])
        rows = [np.moveaxis(ids, where, 0).reshape(ids.shape[where], -1) for ids in (axis.ids, other)]
        scores = view.fresh(len(rows[0]))
        layout = (Axis((labels.result.index(heads[0]),), scores),)
        return Effect(layout, scored=((scores, np.concatenate(rows, axis=1)),))

    def _by_head(self, view: View, main: Axis, where: int, heads: Ids) -> Effect:
        """Values that go head by head with the weights of their sums."""
        values = np.moveaxis(main.ids, where, 0).reshape(len(heads), -1)
        made_of = view.scored(heads)
        rows = [values, heads[:, None], *([made_of] if made_of is not None else [])]
        unit = np.concatenate(rows, axis=1)
        grids = (self._equal_rows(main, main.dims[where]),)
        return Effect(units=(unit,), followers=((heads, unit),), grids=grids)

    def _pass(self, view: View, node: fx.Node, labels: Labels, batch: set[str]) -> Effect | str:
        passing, mixing = self._passing(view, labels)
        main, other = view.axis(passing), view.axis(mixing)
        if main is None:
            return Effect()
        own = self._of_axis(labels, passing, main)
        if other is None and view.scored(main.ids) is not None:
            return Effect(pins=(Pin(main.ids, "what it weighs is not followed"),))
        dims, order = self._placed(labels, own)
        if main.ids.transpose(order).shape != tuple(view.shape(node)[dim] for dim in dims):
            return "it repeats the channel"
        effect = Effect((Axis(dims, np.ascontiguousarray(main.ids.transpose(order))),))
        if order != sorted(order):
            # Walked in another order from here on, each row has to keep the same columns.
            effect += Effect(grids=(Grid(main.ids.reshape(-1, main.ids.shape[-1]), product=True),))
        if other is not None:
            its = self._of_axis(labels, mixing, other)
            shared = [own.index(label) for label in its if label in own and label in batch]
            shape = [main.ids.shape[i] if i in shared else 1 for i in range(main.ids.ndim)]
            if len(shared) != len(its) or other.ids.shape != tuple(main.ids.shape[i] for i in shared):
                return "its operands' heads do not match"
            if shared != sorted(shared):
                return "its operands' heads do not match"
            if len(shared) == 1 < len(own):
                return effect + self._by_head(view, main, shared[0], other.ids)
            return effect + Effect(unions=((main.ids, other.ids.reshape(shape)),))
        of_mixing = labels.of(mixing)
        for label, dim in zip(own, main.dims, strict=True):
            if label in batch and view.shape(mixing)[of_mixing.index(label)] > 1:
                # The mixing operand has one matrix for each of these: they all stay.
                effect += Effect(grids=(self._equal_rows(main, dim),))
        return effect

    @staticmethod
    def _of_axis(labels: Labels, operand: fx.Node, axis: Axis | None) -> list[str]:
        return [] if axis is None else [labels.of(operand)[dim] for dim in axis.dims]

    @staticmethod
    def _placed(labels: Labels, own: list[str]) -> tuple[tuple[int, ...], list[int]]:
        """Where the labels lie in the result, in rising order, and which of them each one is."""
        dims = [labels.result.index(label) for label in own]
        order = [int(place) for place in np.argsort(dims)]
        return tuple(sorted(dims)), order

    @staticmethod
    def _passing(view: View, labels: Labels) -> tuple[fx.Node, fx.Node]:
        """The operand whose coordinates pass, those that it alone has first, and the one that mixes."""
        a, b = view.axis(labels.left), view.axis(labels.right)

        def alone(operand: fx.Node, axis: Axis, others: tuple[str, ...]) -> bool:
            return any(labels.of(operand)[dim] not in others for dim in axis.dims)

        if a is not None and (
            b is None
            or (alone(labels.left, a, labels.of_right) and not alone(labels.right, b, labels.of_left))
        ):
            return labels.left, labels.right
        return labels.right, labels.left

    @staticmethod
    def _equal_rows(axis: Axis, dim: int) -> Grid:
        """Every entry of a dimension keeps as much as the others: none of it goes as a whole."""
        moved = np.moveaxis(axis.ids, axis.dims.index(dim), 0)
        return Grid(moved.reshape(moved.shape[0], -1))

    def constant(self, view: View, node: fx.Node) -> Flags:
        if view.product(node) is not None:
            return self._weighted.constant(view, node)
        over_side = crossed.reading(view, node)
        if over_side is not None:
            return crossed.constant_of_reading(view, over_side)
        if (matrix := crossed.followed(view, node)) is not None:
            return crossed.constant_of_born(view, matrix)
        labels = labels_of(view, node)
        assert not isinstance(labels, str)
        of_left = self._of_axis(labels, labels.left, view.axis(labels.left))
        if set(of_left) & labels.contracted:  # a product of queries and keys, by head
            of_right = self._of_axis(labels, labels.right, view.axis(labels.right))
            other = view.zero(labels.right).transpose([of_right.index(label) for label in of_left])
            summed = tuple(place for place, label in enumerate(of_left) if label in labels.contracted)
            return np.asarray((view.zero(labels.left) | other).all(axis=summed))
        passing, _ = self._passing(view, labels)
        _, order = self._placed(labels, self._of_axis(labels, passing, view.axis(passing)))
        return view.zero(passing).transpose(order)

    def used(self, view: View, node: fx.Node, used: Flags) -> Uses:
        if view.product(node) is not None:
            return self._weighted.used(view, node, used)
        over_side = crossed.reading(view, node)
        if over_side is not None:
            return crossed.used_of_reading(view, over_side, used)
        if (matrix := crossed.followed(view, node)) is not None:
            return crossed.used_of_born(view, matrix, used)
        labels = labels_of(view, node)
        assert not isinstance(labels, str)
        left, right = labels.left, labels.right
        a, b = view.axis(left), view.axis(right)
        of_a, of_b = self._of_axis(labels, left, a), self._of_axis(labels, right, b)
        if a is not None and b is not None and set(of_a) & labels.contracted:
            heads = [label for label in of_a if label not in labels.contracted]
            flags = used if view.axis(node) is not None else np.ones([1] * len(heads), dtype=bool)
            return [
                Use(
                    left, _in_order(~view.zero(right), of_b, of_a) & _in_order(flags, heads, of_a), exact=True
                ),
                Use(
                    right, _in_order(~view.zero(left), of_a, of_b) & _in_order(flags, heads, of_b), exact=True
                ),
            ]
        passing, mixing = self._passing(view, labels)
        if view.axis(node) is None:
            return [Use(mixing), Use(passing)]
        own = self._of_axis(labels, passing, view.axis(passing))
        _, order = self._placed(labels, own)
        read_values = used.transpose(np.argsort(order))
        return [
            Use(mixing, self._weights_used(view, labels, passing, mixing, read_values)),
            Use(passing, read_values, exact=True),
        ]

    def _weights_used(
        self, view: View, labels: Labels, passing: fx.Node, mixing: fx.Node, used: Flags
    ) -> Flags:
        """Which heads of the mixing operand are read: those of values that are used and not zero."""
        axis = view.axis(mixing)
        own, its = self._of_axis(labels, passing, view.axis(passing)), self._of_axis(labels, mixing, axis)
        if axis is None or not set(its) < set(own):
            return ALL
        live = used & ~view.zero(passing)
        others = tuple(place for place, label in enumerate(own) if label not in its)
        return np.asarray(live.any(axis=others)).reshape(axis.ids.shape)


RULES: dict[str, Rule] = dict.fromkeys(
    ("matmul", "mm", "bmm", "baddbmm", "mv", "addmm", "einsum", "tensordot"), Contraction()
)
