"""The dimensions of a product's operands and result by labels, in every spelling: matmul, einsum, tensordot."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from compactmtl.graph.calls import arguments, operator
from compactmtl.graph.questions import Questions


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


def labels_of(graph: Questions, node: fx.Node) -> Labels | str:
    """The call's operands by labels, or why they cannot be told."""
    given, name = arguments(node), operator(node)
    if name == "einsum":
        return _einsum(graph, node)
    if name == "tensordot":
        left, right = given["self"], given["other"]
        ranks = len(graph.shape(left)), len(graph.shape(right))
        own = [f"l{dim}" for dim in range(ranks[0])]
        other = [f"r{dim}" for dim in range(ranks[1])]
        for one, two in zip(given["dims_self"], given["dims_other"], strict=True):
            own[int(one) % ranks[0]] = other[int(two) % ranks[1]] = f"k{one}"
        kept = [label for label in (*own, *other) if not label.startswith("k")]
        return Labels(left, right, tuple(own), tuple(other), tuple(kept))
    bias = None
    if name == "baddbmm":
        left, right, added = given["batch1"], given["batch2"], given["self"]
        none = given["beta"] == 0 or (graph.is_static(added) and not bool(graph.tensor(added).any()))
        if not none:
            return "what it adds is not followed"
    elif name == "addmm":
        left, right, bias = given["mat1"], given["mat2"], given["self"]
        if given["beta"] != 1 or given["alpha"] != 1:
            return "it scales what it adds"
        if len(graph.shape(bias)) > 1:
            return "what it adds differs from row to row"
    else:
        left, right = node.args[0], node.args[1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    ranks = len(graph.shape(left)), len(graph.shape(right))
    batch = [f"b{dim}" for dim in range(max(*ranks, 2) - 2)]
    own = [*batch[len(batch) - max(ranks[0] - 2, 0) :], *(["m", "k"] if ranks[0] > 1 else ["k"])]
    other = [*batch[len(batch) - max(ranks[1] - 2, 0) :], *(["k", "n"] if ranks[1] > 1 else ["k"])]
    result = [*batch, *["m"] * (ranks[0] > 1), *["n"] * (ranks[1] > 1)]
    return Labels(left, right, tuple(own), tuple(other), tuple(result), bias)


def _einsum(graph: Questions, node: fx.Node) -> Labels | str:
    given = arguments(node)
    tensors = given["tensors"]
    if len(tensors) != 2 or tensors[0] is tensors[1]:
        return "it does not multiply two tensors"
    terms, _, result = given["equation"].replace(" ", "").partition("->")
    terms = terms.split(",")
    ranks = [len(graph.shape(tensor)) for tensor in tensors]
    if "->" not in given["equation"]:
        plain = "".join(terms).replace(".", "")
        result = "..." * ("..." in "".join(terms)) + "".join(
            c for c in sorted(set(plain)) if plain.count(c) == 1
        )
    hidden = [
        rank - len(term.replace("...", "")) if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    most = max(hidden)

    def spelled(term: str, count: int) -> tuple[str, ...]:
        before, dots, after = term.partition("...")
        middle = [f".{place}" for place in range(most - count, most)] if dots else []
        return (*before, *middle, *after)

    one, other = (spelled(term, count) for term, count in zip(terms, hidden, strict=True))
    kept = spelled(result, most)
    if any(len(set(labels)) < len(labels) for labels in (one, other, kept)):
        return "it takes a diagonal"
    if {*one, *other} - set(kept) - (set(one) & set(other)):
        return "it sums over a dimension of one tensor alone"
    return Labels(tensors[0], tensors[1], one, other, kept)
