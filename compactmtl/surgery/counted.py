"""Numbers that a module's forward counts channels with, such as a split size, and what they become."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx, nn

from compactmtl.graph.analysis import arguments, operator, source_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids

Attributes = dict[str, dict[str, int | tuple[int, ...]]]


def owner(node: fx.Node) -> str:
    """The path of the innermost module whose forward made this call."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def counted_attributes(graph: ChannelGraph, model: nn.Module, alive: Flags) -> Attributes:
    """Attributes to change, by module.

    A forward may take its counts from the tensor's shape (nothing to do) or from an attribute set at
    construction. The graph shows the counts only; an integer attribute of the same module with the old
    value is taken to be the one. Where that is wrong the proof fails and the removal is rolled back.
    """
    changes: dict[str, dict[int, set[int]]] = {}
    for node, ids in graph.analysis.sized.items():
        for old, new in _counts(graph, node, ids, alive):
            changes.setdefault(owner(node), {}).setdefault(old, set()).add(new)
    modules = dict(model.named_modules())
    attributes: Attributes = {}
    for path, counts in changes.items():
        # A count that became two different ones cannot be told apart; one that did not change may stand alone.
        clear = {old: news.pop() for old, news in counts.items() if len(news) == 1}
        clear = {old: new for old, new in clear.items() if old != new}
        found = _changed(modules[path], clear) if path in modules and clear else {}
        if found:
            attributes[path] = found
    return attributes


def _changed(module: nn.Module, clear: dict[int, int]) -> dict[str, int | tuple[int, ...]]:
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if type(value) is int and value in clear:
            found[name] = clear[value]
        elif isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
            numbers: list[int] = list(value)
            replaced = tuple(clear.get(number, number) for number in numbers)
            if replaced != tuple(value):
                found[name] = replaced
    return found


def _counts(graph: ChannelGraph, node: fx.Node, ids: Ids, alive: Flags) -> list[tuple[int, int]]:
    """(old, new) sizes that the call's arguments may have been computed from."""
    kept = alive[graph.labels[ids]]
    pairs = [(kept.size, int(kept.sum()))]
    if operator(node) in ("split", "split_with_sizes", "chunk", "tensor_split"):
        source = source_of(node)
        dim = int(arguments(node).get("dim") or 0) % len(graph.analysis.shape(source))
        axis = graph.analysis.axis(source)
        assert axis is not None
        row = np.moveaxis(kept, axis.dims.index(dim), -1).reshape(-1, kept.shape[axis.dims.index(dim)])[0]
        start = 0
        for part in node.meta["val"]:
            size = int(part.shape[dim])
            pairs.append((size, int(row[start : start + size].sum())))
            start += size
    elif operator(node) in ("slice", "narrow"):
        given = arguments(node)
        for key in ("start", "end"):
            bound = given.get(key)
            if isinstance(bound, int) and 0 < bound < kept.size:
                pairs.append((bound, int(kept[:bound].sum())))
    elif kept.ndim > 1:
        rows = kept.reshape(-1, kept.shape[-1])
        pairs.append((kept.shape[-1], int(rows[0].sum())))
        merged = np.prod(kept.shape[-2:])
        pairs.append((int(merged), int(kept.reshape(-1, merged)[0].sum())))
    return pairs
