"""Layers in a row: find them in the traced graph, choose which are joined, and hold the result against the proof.

A row is modules of which each reads the tensor of the one before, and nothing else reads it. Where that takes fewer MACs, parts of
it become one layer (see `join`). Layers and norms that hand on their input as it is leave too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import fx, nn

from compactmtl.graph.aliases import may_be_written
from compactmtl.graph.calls import owner, stack_of
from compactmtl.graph.channel_graph import ChannelGraph
from compactmtl.graph.copies import copy_model
from compactmtl.surgery.join import (
    is_identity,
    is_layer,
    is_norm,
    is_pointwise,
    join_layers,
    joined_size,
    main_of,
    shift_before,
    spreads_unevenly,
)
from compactmtl.surgery.observe import observe
from compactmtl.surgery.plan import Join, Plan
from compactmtl.surgery.prove import Proof, Reference, compare, holder
from compactmtl.surgery.report import LayerChange


@dataclass(frozen=True)
class Member:
    """A module of a row. `positions` is at how many places of the example its whole kernel is applied, 0 for a norm.

    With `may_hand_on` its output may be its very input: nothing writes into either, and the model does not return it.
    """

    path: str
    positions: int
    may_hand_on: bool


Row = tuple[Member, ...]


def find_rows(graph: ChannelGraph, model: nn.Module) -> tuple[Row, ...]:
    """The rows of a traced model, in the order of their calls; those of one module among them.

    Left out are modules that are called twice or are in two places, those that share a parameter or whose parameter something
    else reads, and those with hooks.
    """
    calls = {call.path: call for call in _calls(graph, model)}
    entered = {call.source: call for call in calls.values()}
    behind: dict[str, _Call] = {}
    for call in calls.values():
        follower = entered.get(call.result)
        if follower is not None and _read_by_one(graph, call.result) and _fit(graph, call, follower):
            behind[call.path] = follower
    inner = {call.path for call in behind.values()}
    rows = []
    for call in calls.values():
        if call.path in inner:
            continue
        row, current = [call.member], behind.get(call.path)
        while current is not None:
            row.append(current.member)
            current = behind.get(current.path)
        rows.append(tuple(row))
    return tuple(rows)


@dataclass(frozen=True)
class Rejoined:
    """A model whose layers in a row are joined, the edits, and its proof."""

    model: nn.Module
    identities: tuple[str, ...]
    joins: tuple[Join, ...]
    proof: Proof


def rejoin(
    model: nn.Module, rows: Sequence[Row], plan: Plan, expected: Reference, tolerance: float
) -> Rejoined | None:
    """Join what takes fewer MACs so; None where nothing does, or nothing of it holds the proof.

    `model` is what `plan` makes and is left as it was; the result shares its tensors. An edit that fails the proof, or without
    which alone the model runs in training mode, is left out.
    """
    identities, joins = choose(model, rows)
    if identities or joins:
        identities, joins = choose(model, _as_observed(model, rows, identities, expected))
    edits: list[str | Join] = [*identities, *joins]
    if not edits:
        return None

    def made(chosen: Sequence[str | Join]) -> nn.Module:
        copied = copy_model(model, share=True)
        join_layers(copied, _edited(plan, chosen))
        return copied

    def holds(chosen: Sequence[str | Join]) -> bool:
        return holder(model, made(chosen), expected, tolerance)()

    accepted = _accepted([], edits, holds)
    if not accepted:
        return None
    small, edited = made(accepted), _edited(plan, accepted)
    return Rejoined(small, edited.identities, edited.joins, compare(expected, small, tolerance))


def _as_observed(
    model: nn.Module, rows: Sequence[Row], identities: Sequence[str], expected: Reference
) -> list[Row]:
    """The rows without what a run in either mode shows to be read or written besides."""
    behind = {one.path: other.path for row in rows for one, other in pairwise(row)}
    training = observe(model, behind, identities, expected, training=True)
    evaluation = observe(model, behind, identities, expected, training=False)
    apart = training.read_elsewhere | training.overwritten | evaluation.overwritten
    written = training.written | evaluation.written
    return [
        tuple(replace(one, may_hand_on=one.may_hand_on and one.path not in written) for one in row)
        for row in _apart(rows, apart)
    ]


def _apart(rows: Sequence[Row], ends: Set[str]) -> list[Row]:
    """The rows, taken apart behind the modules of `ends`."""
    parts: list[Row] = []
    for row in rows:
        first = 0
        for place, member in enumerate(row, 1):
            if member.path in ends or place == len(row):
                parts.append(row[first:place])
                first = place
    return parts


def choose(model: nn.Module, rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[Join, ...]]:
    """The identities among the rows' modules, and the joins with which the rest takes the fewest MACs."""
    modules = dict(model.named_modules())
    identities: list[str] = []
    joins: list[Join] = []
    for row in rows:
        own = [member for member in row if member.may_hand_on and is_identity(modules[member.path])]
        identities += [member.path for member in own]
        joins += _cheapest([member for member in row if member not in own], modules)
    return tuple(identities), tuple(joins)


def after_joins(changes: Sequence[LayerChange], rejoined: Rejoined) -> tuple[LayerChange, ...]:
    """The layers' channels and MACs once they are joined: those that left have none."""
    into = {join.into: join for join in rejoined.joins}
    left = {path for join in rejoined.joins for path in join.layers if path != join.into}
    gone = left | set(rejoined.identities)
    known = {change.name: change for change in changes}
    found = []
    for change in changes:
        if change.name in gone:
            change = replace(change, after=(0, 0), macs_after=0)
        elif (join := into.get(change.name)) is not None:
            first = next(known[path] for path in join.layers if path in known)
            last = next(known[path] for path in reversed(join.layers) if path in known)
            outputs, inputs = last.after[0], first.after[1]
            before = max(change.after[0] * change.after[1], 1)
            macs = round(change.macs_after * outputs * inputs / before)
            change = replace(change, after=(outputs, inputs), macs_after=macs)
        found.append(change)
    return tuple(found)


@dataclass(frozen=True)
class _Call:
    """The one call of a module: what it reads and gives."""

    path: str
    source: fx.Node
    result: fx.Node
    member: Member
    flat: bool  # whether its result has no dimension but the batch and the channel
    norm: bool
    linear: bool


def _calls(graph: ChannelGraph, model: nn.Module) -> list[_Call]:
    """The calls of all layers and norms that may lie in a row."""
    modules = dict(model.named_modules())
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    shared = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    inside: dict[str, list[fx.Node]] = {}
    times: dict[str, set[str]] = {}
    for node in graph.calls:
        for call, path in stack_of(node).items():
            times.setdefault(path, set()).add(call)
        inside.setdefault(owner(node), []).append(node)
    outputs = set(graph.outputs)
    found = []
    for path, nodes in inside.items():
        module = modules.get(path)
        if not path or module is None or not (is_layer(module) or is_norm(module)):
            continue
        own = set(nodes)
        parameters = {
            source for node in nodes for source in node.all_input_nodes if graph.parameter(source) is not None
        }
        sources = {source for node in nodes for source in node.all_input_nodes} - own - parameters
        if (
            len(times[path]) > 1
            or places[id(module)] > 1
            or len(sources) != 1
            or any(shared[id(value)] > 1 for value in module.parameters())
            or any(user not in own for part in (*parameters, *nodes[:-1]) for user in part.users)
        ):
            continue
        (source,), result = sources, nodes[-1]
        weight = module.weight if is_layer(module) else None
        positions = sum(graph.macs_of(node) for node in nodes) // weight.numel() if weight is not None else 0
        hands_on = not (
            result in outputs
            or any(graph.is_written_through_a_view(node) or may_be_written(node) for node in (source, result))
        )
        found.append(
            _Call(
                path,
                source,
                result,
                Member(path, positions, hands_on),
                len(graph.shape(result)) == 2,
                weight is None,
                isinstance(module, nn.Linear),
            )
        )
    return found


def _read_by_one(graph: ChannelGraph, node: fx.Node) -> bool:
    return (
        len(node.users) == 1
        and node not in graph.outputs
        and not graph.is_written_through_a_view(node)
        and not graph.is_read_elsewhere(node)
    )


def _fit(graph: ChannelGraph, call: _Call, follower: _Call) -> bool:
    """Whether both count the same dimension as channels: a norm takes the second one, a linear layer the last."""
    return call.flat or not ((call.norm and follower.linear) or (call.linear and follower.norm))


def _cheapest(row: Sequence[Member], modules: dict[str, nn.Module]) -> list[Join]:
    """The joins of a row with which it takes the fewest MACs; of equally many the fewest joins."""
    layers = [place for place, member in enumerate(row) if is_layer(modules[member.path])]
    best: list[tuple[int, list[Join]]] = [(0, [])]  # of the first layers, by their number
    for end in range(len(layers)):
        alone = row[layers[end]]
        macs, joins = best[end]
        least = (macs + alone.positions * joined_size([modules[alone.path]], 0), joins)
        for start in range(end):
            part = row[layers[start] : layers[end] + 1]
            macs, joins = best[start]
            found = _join(part, [modules[member.path] for member in part])
            if found is not None and macs + found[0] < least[0]:
                least = (macs + found[0], [*joins, found[1]])
        best.append(least)
    return best[-1][1]


def _join(part: Sequence[Member], modules: Sequence[nn.Module]) -> tuple[int, Join] | None:
    """MACs of a part of a row as one layer; None where it cannot be one exactly."""
    main = main_of(modules)
    if main is None:
        return None
    if (
        not is_pointwise(modules[main])
        and spreads_unevenly(modules[main])
        and bool(shift_before(modules[:main]).any())
    ):
        return None
    macs = part[main].positions * joined_size(modules, main)
    return macs, Join(layers=tuple(member.path for member in part), into=part[main].path)


def _edited(plan: Plan, chosen: Sequence[str | Join]) -> Plan:
    return plan.model_copy(
        update={
            "identities": tuple(edit for edit in chosen if isinstance(edit, str)),
            "joins": tuple(edit for edit in chosen if isinstance(edit, Join)),
        }
    )


def _accepted(
    base: list[str | Join], edits: Sequence[str | Join], holds: Callable[[Sequence[str | Join]], bool]
) -> list[str | Join]:
    """The edits that hold together with those of `base`, by halves, and `base`."""
    if holds([*base, *edits]):
        return [*base, *edits]
    if len(edits) == 1:
        return base
    middle = len(edits) // 2
    base = _accepted(base, edits[:middle], holds)
    return _accepted(base, edits[middle:], holds)
