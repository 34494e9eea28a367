"""Products over a shared dimension: matmul, einsum, tensordot, of two activations or of one and a parameter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import fx

from compactmtl.graph.analysis import Analysis, Rule
from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.rules.product import Layer, Operands
from compactmtl.graph.space import Axis, Flags, Ids


@dataclass(frozen=True)
class Labels:
    """Two operands and what is made of them, one label a dimension; a label that the result lacks is summed over."""

    left: fx.Node
    right: fx.Node
    of_left: tuple[str, ...]
    of_right: tuple[str, ...]
    result: tuple[str, ...]
    bias: fx.Node | None = None

    @property
    def contracted(self) -> set[str]:
        return set(self.of_left) & set(self.of_right) - set(self.result)

    def of(self, node: fx.Node) -> tuple[str, ...]:
        return self.of_left if node is self.left else self.of_right


def labels_of(analysis: Analysis, node: fx.Node) -> Labels | str:
    """The call's operands by labels, or why they cannot be told."""
    given, name = arguments(node), operator(node)
    if name == "einsum":
        return _einsum(analysis, node)
    if name == "tensordot":
        left, right = given["self"], given["other"]
        ranks = len(analysis.shape(left)), len(analysis.shape(right))
        own = [f"l{dim}" for dim in range(ranks[0])]
        other = [f"r{dim}" for dim in range(ranks[1])]
        for one, two in zip(given["dims_self"], given["dims_other"], strict=True):
            own[int(one) % ranks[0]] = other[int(two) % ranks[1]] = f"k{one}"
        kept = [label for label in (*own, *other) if not label.startswith("k")]
        return Labels(left, right, tuple(own), tuple(other), tuple(kept))
    bias = None
    if name == "addmm":
        left, right, bias = given["mat1"], given["mat2"], given["self"]
        if given["beta"] != 1 or given["alpha"] != 1:
            return "it scales what it adds"
        if len(analysis.shape(bias)) > 1:
            return "what it adds differs from row to row"
    else:
        left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    ranks = len(analysis.shape(left)), len(analysis.shape(right))
    batch = [f"b{dim}" for dim in range(max(*ranks, 2) - 2)]
    own = [*batch[len(batch) - max(ranks[0] - 2, 0) :], *(["m", "k"] if ranks[0] > 1 else ["k"])]
    other = [*batch[len(batch) - max(ranks[1] - 2, 0) :], *(["k", "n"] if ranks[1] > 1 else ["k"])]
    result = [*batch, *["m"] * (ranks[0] > 1), *["n"] * (ranks[1] > 1)]
    return Labels(left, right, tuple(own), tuple(other), tuple(result), bias)


def _einsum(analysis: Analysis, node: fx.Node) -> Labels | str:
    given = arguments(node)
    tensors = given["tensors"]
    if len(tensors) != 2 or tensors[0] is tensors[1]:
        return "it does not multiply two tensors"
    terms, _, result = given["equation"].replace(" ", "").partition("->")
    terms = terms.split(",")
    ranks = [len(analysis.shape(tensor)) for tensor in tensors]
    if "->" not in given["equation"]:
        plain = "".join(terms).replace(".", "")
        result = "..." * ("..." in "".join(terms)) + "".join(
            c for c in sorted(set(plain)) if plain.count(c) == 1
        )
    lost = [
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    most = max(lost)

    def spelled(term: str, count: int) -> tuple[str, ...]:
        before, dots, after = term.partition("...")
        middle = [f".{place}" for place in range(most - count, most)] if dots else []
        return (*before, *middle, *after)

    one, other = (spelled(term, count) for term, count in zip(terms, lost, strict=True))
    found = spelled(result, most)
    if any(len(set(labels)) < len(labels) for labels in (one, other, found)):
        return "it takes a diagonal"
    if {*one, *other} - set(found) - (set(one) & set(other)):
        return "it sums over a dimension of one tensor alone"
    return Labels(tensors[0], tensors[1], one, other, found)


class Weighted(Layer):
    """A product with a parameter over its inputs: a linear layer in another spelling. Its constants are not folded."""

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        own = self.operands(analysis, node)
        shape = analysis.shape(own.source)
        positions = float(np.prod(shape)) / max(shape[own.in_channel], 1)
        return self.bind(analysis, node, 1, positions, False, operator(node))

    def operands(self, analysis: Analysis, node: fx.Node) -> Operands:
        own = self.find(analysis, node)
        assert own is not None
        return own

    @staticmethod
    def find(analysis: Analysis, node: fx.Node) -> Operands | None:
        """The layer that the call stands for, or None where it is no such product."""
        labels = labels_of(analysis, node)
        if isinstance(labels, str):
            return None
        static = [operand for operand in (labels.left, labels.right) if analysis.is_static(operand)]
        if len(static) != 1 or len(labels.contracted) != 1:
            return None
        weight, source = static[0], labels.left if static[0] is labels.right else labels.right
        (summed,) = labels.contracted
        of_weight, of_source = labels.of(weight), labels.of(source)
        shape = analysis.shape(weight)
        free = [
            label
            for label, size in zip(of_weight, shape, strict=True)
            if label not in of_source and (size > 1 or len(shape) == 2)
        ]
        wide = [label for label, size in zip(of_weight, shape, strict=True) if size > 1]
        if len(free) != 1 or set(wide) - {summed, free[0]}:
            return None
        axis = analysis.axis(source)
        if axis is not None and axis.dims != (of_source.index(summed),):
            return None
        bias = labels.bias
        if bias is not None and analysis.is_static(bias) and not bool(analysis.tensor(bias).any()):
            bias = None  # zeros to add to
        elif bias is not None and (
            not analysis.is_static(bias) or analysis.shape(bias) != (shape[of_weight.index(free[0])],)
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

    def known_inputs(self, analysis: Analysis, node: fx.Node) -> Flags:
        return analysis.constant(self.operands(analysis, node).source)

    def groups(self, node: fx.Node) -> int:
        return 1

    def _folds(
        self, analysis: Analysis, weight_node: fx.Node, groups: int, depthwise: bool, padded: bool
    ) -> bool:
        return False


class Contraction:
    """Of two activations: the contracted coordinates go together, the others pass. With a parameter: see `Weighted`."""

    _weighted = Weighted()

    def layout(self, analysis: Analysis, node: fx.Node) -> str | None:
        labels = labels_of(analysis, node)
        if isinstance(labels, str):
            return labels
        if node in analysis.static:
            for operand in (labels.left, labels.right):
                analysis.pin(operand)
            analysis.layouts[node] = ()
            return None
        if Weighted.find(analysis, node) is not None:
            return self._weighted.layout(analysis, node)
        if labels.bias is not None:
            return "what it adds is not followed"
        a, b = analysis.axis(labels.left), analysis.axis(labels.right)
        of_a = self._of_axis(labels, labels.left, a)
        of_b = self._of_axis(labels, labels.right, b)
        summed = labels.contracted
        if set(of_a) & summed != set(of_b) & summed:
            return "only one of its operands' contracted dimensions is tracked"
        batch = set(labels.of_left) & set(labels.of_right) & set(labels.result)
        if set(of_a) & summed:
            assert a is not None and b is not None
            if set(of_a) != set(of_b) or not set(of_a) - summed <= batch:
                return "its operands' heads do not match"
            other = b.ids.transpose([of_b.index(label) for label in of_a])
            if a.ids.shape != other.shape:
                return "its operands' heads do not match"
            analysis.space.union(a.ids, other)
            analysis.layouts[node] = ()
            return None
        return self._pass(analysis, node, labels, batch)

    def _pass(self, analysis: Analysis, node: fx.Node, labels: Labels, batch: set[str]) -> str | None:
        passing, mixing = self._passing(analysis, labels)
        main, other = analysis.axis(passing), analysis.axis(mixing)
        if main is None:
            analysis.layouts[node] = ()
            return None
        own = self._of_axis(labels, passing, main)
        dims, order = self._placed(labels, own)
        if main.ids.transpose(order).shape != tuple(analysis.shape(node)[dim] for dim in dims):
            return "it repeats the channel"
        if order != sorted(order):
            # Walked in another order from here on, each row has to keep the same columns.
            analysis.space.grid(main.ids.reshape(-1, main.ids.shape[-1]), product=True)
        if other is not None:
            its = self._of_axis(labels, mixing, other)
            shared = [own.index(label) for label in its if label in own and label in batch]
            shape = [main.ids.shape[i] if i in shared else 1 for i in range(main.ids.ndim)]
            if len(shared) != len(its) or other.ids.shape != tuple(main.ids.shape[i] for i in shared):
                return "its operands' heads do not match"
            if shared != sorted(shared):
                return "its operands' heads do not match"
            analysis.space.union(main.ids, other.ids.reshape(shape))
        else:
            of_mixing = labels.of(mixing)
            for label, dim in zip(own, main.dims, strict=True):
                if label in batch and analysis.shape(mixing)[of_mixing.index(label)] > 1:
                    # The mixing operand has one matrix for each of these: they all stay.
                    self._pin_rows(analysis, main, dim)
        analysis.layouts[node] = (Axis(dims, np.ascontiguousarray(main.ids.transpose(order))),)
        return None

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
    def _passing(analysis: Analysis, labels: Labels) -> tuple[fx.Node, fx.Node]:
        """The operand whose coordinates pass, those that it alone has first, and the one that mixes."""
        a, b = analysis.axis(labels.left), analysis.axis(labels.right)

        def alone(operand: fx.Node, axis: Axis, others: tuple[str, ...]) -> bool:
            return any(labels.of(operand)[dim] not in others for dim in axis.dims)

        if a is not None and (
            b is None
            or (alone(labels.left, a, labels.of_right) and not alone(labels.right, b, labels.of_left))
        ):
            return labels.left, labels.right
        return labels.right, labels.left

    @staticmethod
    def _pin_rows(analysis: Analysis, axis: Axis, dim: int) -> None:
        """Every entry of a dimension keeps as much as the others: none of it goes as a whole."""
        moved = np.moveaxis(axis.ids, axis.dims.index(dim), 0)
        analysis.space.grid(moved.reshape(moved.shape[0], -1))

    def constant(self, analysis: Analysis, node: fx.Node) -> Flags:
        if node in analysis.products:
            return self._weighted.constant(analysis, node)
        labels = labels_of(analysis, node)
        assert not isinstance(labels, str)
        passing, _ = self._passing(analysis, labels)
        _, order = self._placed(labels, self._of_axis(labels, passing, analysis.axis(passing)))
        return analysis.zero(passing).transpose(order)

    def used(self, analysis: Analysis, node: fx.Node, used: Flags) -> None:
        if node in analysis.products:
            self._weighted.used(analysis, node, used)
            return
        labels = labels_of(analysis, node)
        assert not isinstance(labels, str)
        left, right = labels.left, labels.right
        a, b = analysis.axis(left), analysis.axis(right)
        of_a, of_b = self._of_axis(labels, left, a), self._of_axis(labels, right, b)
        if analysis.axis(node) is None and a is not None and b is not None and set(of_a) == set(of_b):
            order = [of_b.index(label) for label in of_a]
            analysis.use_exactly(left, ~analysis.zero(right).transpose(order))
            analysis.use_exactly(
                right, (~analysis.zero(left)).transpose([of_a.index(label) for label in of_b])
            )
            return
        passing, mixing = self._passing(analysis, labels)
        analysis.use_all(mixing)
        if analysis.axis(node) is None:
            analysis.use_all(passing)
        else:
            _, order = self._placed(labels, self._of_axis(labels, passing, analysis.axis(passing)))
            back: Ids = np.argsort(order)
            analysis.use_exactly(passing, used.transpose(back))


RULES: dict[str, Rule] = dict.fromkeys(
    ("matmul", "mm", "bmm", "mv", "addmm", "einsum", "tensordot"), Contraction()
)
