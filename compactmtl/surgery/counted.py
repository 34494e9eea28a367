"""Numbers that a module's forward counts channels with, such as a split size, and what they become."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from compactmtl.graph.calls import arguments, operator, owner, source_of, stack_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.space import Flags, Ids
from compactmtl.surgery.full_width import full_width_edits

Attributes = dict[str, dict[str, int | tuple[int, ...]]]


@dataclass(frozen=True)
class Reading:
    """How forwards are taken to come by the numbers that the traced graph shows."""

    computed_scales: bool = True  # scales of attention that equal a power of its width are computed from it
    layers: bool = False  # modules also count what the layers directly in them read and write


def counted_attributes(
    graph: ChannelGraph, model: nn.Module, alive: Flags, layers: bool = False
) -> Attributes:
    """Attributes to change, by module; with `layers` also those that count what the layers directly in a module read and write.

    A forward may take its counts from the tensor's shape (nothing to do) or from an attribute set at
    construction. The graph shows the counts only; an integer attribute of the same module with the old
    value is taken to be the one, if in most modules of the same class it holds a count; where several have it,
    those that do so most often, and of these the ones that change in most other modules. Where that is wrong the proof fails and the removal is rolled back.
    """
    changes: dict[str, dict[int, set[int]]] = {}
    modules = dict(model.named_modules())
    attributes: Attributes = {}
    full_width = {edit.module for edit in full_width_edits(graph, alive)}
    for node, ids in graph.sized.items():
        if operator(node) == "group_norm" and not full_width.isdisjoint(stack_of(node).values()):
            continue
        span = getattr(modules.get(owner(node)), "read_span", None)
        if span is not None and operator(node) in ("slice", "narrow"):  # of an earlier surgery
            kept, first = alive[graph.labels[ids]], span[0]
            left = int(kept[:first].sum()), int(kept[first : first + span[1]].sum())
            if left != span:
                attributes[owner(node)] = {"read_span": left}
            continue
        pairs = _counts(graph, node, ids, alive)
        changed = {old for old, new in pairs if old != new}
        for old, new in pairs:
            if old == new and old in changed:
                continue  # of two equal numbers in one call the other stays, as the 3 of q, k and v beside 3 heads
            changes.setdefault(owner(node), {}).setdefault(old, set()).add(new)
    for product in graph.products if layers else ():
        parent = changes.setdefault(product.name.rpartition(".")[0], {})
        for of_layer in (product.inputs, product.outputs):
            if of_layer is not None:
                kept = alive[graph.labels[of_layer]]
                parent.setdefault(kept.size, set()).add(int(kept.sum()))
    own = (nn.RNNBase, nn.RNNCellBase, _ConvNd)  # agree with their tensors anyway
    changes = {
        path: counts
        for path, counts in changes.items()
        if path in modules and not isinstance(modules[path], own)
    }
    chance = _chance_of_a_count(modules, changes)
    followed = _chance_to_change(modules, changes)
    for path, counts in changes.items():
        clear = {old: next(iter(news)) for old, news in counts.items() if len(news) == 1}
        clear = {old: new for old, new in clear.items() if old != new}
        new_values = _changed(modules[path], clear, frozenset(counts), chance, followed) if clear else {}
        # Of a count that became two different ones, one did not change: those attributes follow the other that do elsewhere.
        for name, value in _whole_numbers(modules[path]):
            others = counts.get(value, set()) - {value}
            is_one = len(counts.get(value, ())) == 2 and len(others) == 1
            if is_one and followed.get((type(modules[path]), name), 0.0) > 0.5:
                new_values[name] = next(iter(others))
        if new_values:
            attributes[path] = attributes.get(path, {}) | new_values
    return attributes


Chance = dict[tuple[type[nn.Module], str], float]


def _chance_of_a_count(
    modules: Mapping[str, nn.Module], changes: Mapping[str, Mapping[int, object]]
) -> Chance:
    """How often an attribute of a class has the value of some count of the same module."""
    matches: dict[tuple[type[nn.Module], str], list[bool]] = {}
    for path, counts in changes.items():
        for name, value in _whole_numbers(modules[path]):
            matches.setdefault((type(modules[path]), name), []).append(value in counts)
    return {key: sum(hits) / len(hits) for key, hits in matches.items()}


def _chance_to_change(
    modules: Mapping[str, nn.Module], changes: Mapping[str, Mapping[int, Set[int]]]
) -> Chance:
    """How often an attribute of a class has the value of a count that changes, where it has the value of one clear count."""
    matches: dict[tuple[type[nn.Module], str], list[bool]] = {}
    for path, counts in changes.items():
        for name, value in _whole_numbers(modules[path]):
            news = counts.get(value, ())
            if len(news) == 1:
                matches.setdefault((type(modules[path]), name), []).append(value not in news)
    return {key: sum(hits) / len(hits) for key, hits in matches.items()}


def _whole_numbers(module: nn.Module) -> list[tuple[str, int]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if type(value) is int and not name.startswith("_") and name != "training"
    ]


def _changed(
    module: nn.Module, clear: dict[int, int], counts: frozenset[int], chance: Chance, followed: Chance
) -> dict[str, int | tuple[int, ...]]:
    """New values of a module's attributes; of a list, such as the sizes of a split, only where all of it are counts."""
    changes: dict[str, int | tuple[int, ...]] = {}
    numbers = _whole_numbers(module)
    for old, new in clear.items():
        names = [name for name, value in numbers if value == old]
        best = max((chance[type(module), name] for name in names), default=0.0)
        if best > 0.5:  # less often it holds the same number as a count by coincidence
            names = [name for name in names if chance[type(module), name] == best]
            # as many heads as a head is wide: elsewhere one of the two changes
            changing = [name for name in names if followed.get((type(module), name), 0.0) > 0.5]
            changes.update(dict.fromkeys(changing or names, new))
    for name, value in vars(module).items():
        several = isinstance(value, (list, tuple)) and len(value) > 0 and not name.startswith("_")
        if several and all(type(item) is int and item in counts for item in value):
            replaced = tuple(clear.get(number, number) for number in value)
            if replaced != tuple(value):
                changes[name] = replaced
    return changes


def _counts(graph: ChannelGraph, node: fx.Node, ids: Ids, alive: Flags) -> list[tuple[int, int]]:
    """(old, new) sizes that the call's arguments may have been computed from."""
    kept = alive[graph.labels[ids]]
    pairs = [(kept.size, int(kept.sum()))]
    if operator(node) in ("split", "split_with_sizes", "chunk", "tensor_split"):
        source = source_of(node)
        dim = int(arguments(node).get("dim") or 0) % len(graph.shape(source))
        axis = graph.axis(source)
        assert axis is not None
        where = axis.dims.index(dim)
        row = _fullest(np.moveaxis(kept, where, -1).reshape(-1, kept.shape[where]))
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
    elif (product := graph.product(node)) is not None:
        if product.groups > 1:
            pairs.append((product.groups, int(kept.reshape(product.groups, -1).any(1).sum())))
    elif operator(node) == "group_norm":
        groups = int(arguments(node)["num_groups"])
        pairs.append((groups, int(kept.reshape(groups, -1).any(1).sum())))
    elif kept.ndim > 1:
        for dim in range(kept.ndim - 1):  # whole heads may have gone
            others = tuple(other for other in range(kept.ndim) if other != dim)
            pairs.append((kept.shape[dim], int(kept.any(axis=others).sum())))
        for size in (kept.shape[-1], int(np.prod(kept.shape[-2:]))):
            pairs.append((size, int(_fullest(kept.reshape(-1, size)).sum())))
    return pairs


def _fullest(rows: Flags) -> Flags:
    """The row with the most entries: as many as all others, but for those of which nothing stays."""
    row: Flags = rows[rows.sum(1).argmax()]
    return row
