"""The MACs of every traced call as a function of the channels that are left."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import fx

from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.questions import Questions
from compactmtl.graph.rules import crossed
from compactmtl.graph.space import Flags, Ids

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class Work:
    """A part of a call: `scale` MACs for each pair of an output and an input that are left.

    `inputs` None: for each output. `outputs` None as well: whatever is left.
    """

    node: fx.Node
    scale: float
    outputs: Ids | None = None
    inputs: Ids | None = None


class MacModel:
    """MACs with only some classes of coordinates left, as the counter counted them with all of them."""

    def __init__(self, graph: Questions, labels: Ids, classes: int) -> None:
        works = [work for node in graph.calls for work in _works(graph, node)]
        self._products = len(graph.products)
        # A recurrent call is several products, none of which is all of its work.
        position = {p.node: place for place, p in enumerate(graph.products) if graph.product(p.node) is p}
        self._of_product = np.array([position.get(work.node, -1) for work in works], dtype=np.int64)
        self._scale = np.array([work.scale for work in works])
        self._nodes = [work.node for work in works]
        self._each = np.array([work.inputs is None for work in works], dtype=bool)
        self._always = np.array([work.outputs is None for work in works], dtype=bool)
        self._outputs = counts([work.outputs for work in works], labels, classes)
        self._inputs = counts([work.inputs for work in works], labels, classes)

    def total(self, alive: Flags, without: Flags | None = None) -> float:
        """Of the whole model, with only the `alive` classes left, (classes,), and `without` these parts of calls (see `parts_of`)."""
        remaining = self._remaining(alive)
        return float(remaining.sum() if without is None else remaining[~without].sum())

    def parts_of(self, calls: Collection[fx.Node]) -> Flags:
        """Which parts of calls belong to these."""
        return np.array([node in calls for node in self._nodes], dtype=bool)

    def by_product(self, alive: Flags) -> NDArray[np.float64]:
        """Of each of the graph's products."""
        result = np.zeros(self._products)
        own = self._of_product >= 0
        np.add.at(result, self._of_product[own], self._remaining(alive)[own])
        return result

    def _remaining(self, alive: Flags) -> NDArray[np.float64]:
        weights = alive.astype(np.float64)
        outputs = np.where(self._always, 1.0, self._outputs @ weights)
        inputs = np.where(self._each, 1.0, self._inputs @ weights)
        result: NDArray[np.float64] = self._scale * outputs * inputs
        return result


def counts(ids: Sequence[Ids | None], labels: Ids, classes: int) -> csr_matrix:
    """How many entries of each list lie in each class, (lists, classes)."""
    given = [np.empty(0, np.int64) if own is None else own.ravel() for own in ids]
    rows = np.repeat(np.arange(len(given)), [len(own) for own in given])
    columns = labels[np.concatenate(given)] if given else np.empty(0, np.int64)
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(given), classes))


def _works(graph: Questions, node: fx.Node) -> Iterator[Work]:
    macs = float(graph.macs_of(node))
    if not macs:
        return
    parts = _parts(graph, node) if graph.follows(node) and not graph.is_computed(node) else []
    weights = [
        share * len(outputs) * (1 if inputs is None else len(inputs)) for share, outputs, inputs in parts
    ]
    if not sum(weights):
        yield Work(node, macs)
        return
    for share, outputs, inputs in parts:
        yield Work(node, macs * share / sum(weights), outputs, inputs)


Part = tuple[float, Ids, Ids | None]  # MACs of one pair in any unit, outputs, inputs


def _parts(graph: Questions, node: fx.Node) -> list[Part]:
    """How the MACs of a call depend on channels; none where all of it stays."""
    name = operator(node)
    product = graph.product(node)
    if product is not None:
        if product.inputs is None:
            return [(1.0, product.outputs, None)]
        rows = product.outputs.reshape(product.groups, -1), product.inputs.reshape(product.groups, -1)
        return [(1.0, outputs, inputs) for outputs, inputs in zip(*rows, strict=True)]
    if name == "scaled_dot_product_attention":
        return _attention(graph, node)
    if name in ("matmul", "mm", "bmm", "baddbmm", "einsum", "tensordot"):
        return list(crossed.macs_of(graph, node)) or _matmul(graph, node)
    return _recurrent(graph, node) if name in _RECURRENT else []


def _attention(graph: Questions, node: fx.Node) -> list[Part]:
    given = arguments(node)
    axes = graph.axis(given["query"]), graph.axis(node)
    return [(1.0, axis.ids.ravel(), None) for axis in axes if axis is not None]


def _matmul(graph: Questions, node: fx.Node) -> list[Part]:
    """The contracted coordinates, or those that pass; the other dimensions are no channels."""
    left, right = graph.tensors_in(node)[-2:]
    axes = [axis for axis in (graph.axis(node), graph.axis(left), graph.axis(right)) if axis is not None]
    largest = max(axes, key=lambda axis: axis.ids.size, default=None)
    return [] if largest is None else [(1.0, largest.ids.ravel(), None)]


def _recurrent(graph: Questions, node: fx.Node) -> list[Part]:
    """Each matrix of the layer, once a step."""
    parts: list[Part] = []
    for given in arguments(node).values():
        for source in given if isinstance(given, (list, tuple)) else ():
            name = graph.parameter(source) if isinstance(source, fx.Node) else None
            if name is None or len(graph.shape(source)) != 2:
                continue
            rows, columns = (graph.binding(name, dim) for dim in (0, 1))
            if rows is None or columns is None:
                return []
            parts.append((1.0, rows.ids, columns.ids))
    return parts
