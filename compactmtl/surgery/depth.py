"""Depth: modules that give the same whatever the input leave, and so does all that only they read.

A residual branch whose last layer gives zeros, or one constant a channel, is an example: its constant takes the place of
the module that gives it, and the layers before it, which nothing reads then, go whole. The addition stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph
from compactmtl.graph.calls import stack_of
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import Arguments
from compactmtl.graph.trace import trace
from compactmtl.graph.unreached import unreached_modules
from compactmtl.surgery.outputs import remove_unread
from compactmtl.surgery.plan import ConstantEdit
from compactmtl.surgery.prove import Reference, holder
from compactmtl.surgery.stand_ins import constant, put_where_it_holds, size_behind_batch, watch_outputs


@dataclass(frozen=True)
class Shortened:
    """A model whose constant modules are replaced, the edits, and the modules that nothing reads since."""

    model: nn.Module
    constants: tuple[ConstantEdit, ...]
    absent: Mapping[str, tuple[int, ...]]


def shorten(
    model: nn.Module,
    arguments: Arguments,
    graph: ChannelGraph,
    expected: Reference,
    tolerance: float | None = None,
) -> Shortened | None:
    """Take out the constant modules of a traced model; None where there are none, or none can go.

    `model` is left as it was; the result shares its tensors. Each replacement is held against `expected` by the `tolerance` of
    `compare`, and in training mode. What a module
    gives may be taken as a number, at one value a channel, or at the size of the example, and the first that fits stays.
    """
    found = _constant_modules(model, arguments, graph)
    if not found:
        return None
    short = copy_model(model, share=True)
    edits: dict[str, ConstantEdit] = {}
    holds = holder(model, short, expected, tolerance)
    for form in range(3):
        pending = {
            path: edit
            for path, forms in found.items()
            if path not in edits and (edit := forms[form]) is not None
        }
        modules = {path: constant(short, edit) for path, edit in pending.items()}
        edits.update((path, pending[path]) for path in put_where_it_holds(short, modules, holds))
    if not edits:
        return None
    try:
        absent = remove_unread(short, arguments, graph.unreached, holds)
        still = unreached_modules(short, trace(short, arguments, whole=graph.tracing.whole))
    except SurgeryError:  # a stand-in that runs may still be more than the tracer takes
        return None
    # Modules that are called and that nothing reads would keep all that they read.
    if set(still) - set(graph.unreached):
        return None
    return Shortened(short, tuple(edits.values()), absent)


_Forms = tuple[ConstantEdit | None, ConstantEdit, ConstantEdit | None]


def _constant_modules(model: nn.Module, arguments: Arguments, graph: ChannelGraph) -> dict[str, _Forms]:
    """The outermost modules that give a constant which something else reads, each with the forms that it can take."""
    candidates = _candidates(graph)
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {}

    def note(path: str, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes[path] = tuple(output.shape), size_behind_batch(args, output)

    watch_outputs(model, arguments, candidates, note)
    ends = {
        node: path
        for path, node in candidates.items()
        if path in sizes and sizes[path][0] == graph.shape(node) and not graph.is_read_elsewhere(node)
    }
    ends = _without_what_is_read_elsewhere(graph, ends)
    # What stands before a constant is not read: only the last of a chain of constants is replaced.
    read = _reached(graph, ends)
    lost = [node for node in graph.calls if node not in read]
    if not any(graph.product(node) is not None or graph.macs_of(node) for node in lost):
        return {}
    return {path: _forms(path, graph, node, sizes[path][1]) for node, path in ends.items() if node in read}


def _without_what_is_read_elsewhere(graph: ChannelGraph, ends: dict[fx.Node, str]) -> dict[fx.Node, str]:
    """The constants behind which nothing stands that modules which the forward does not reach may read."""
    needed = {node for node in graph.calls if graph.is_read_elsewhere(node)} & _reached(graph, ())
    kept = dict(ends)
    while kept and needed - _reached(graph, kept):
        before = len(kept)
        for node in ends:
            if needed & (_reached(graph, [end for end in kept if end is not node]) - _reached(graph, kept)):
                kept.pop(node, None)
        if len(kept) == before:  # none of them alone
            return {}
    return kept


def _reached(graph: ChannelGraph, ends: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that the outputs depend on when nothing is read behind `ends`."""
    pending, reached, stops = list(graph.outputs), set[fx.Node](), set(ends)
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending += () if node in stops else node.all_input_nodes
    return reached


def _candidates(graph: ChannelGraph) -> dict[str, fx.Node]:
    """Outermost modules, called once, that hand on one tensor, all of it constant or unread; with that tensor's call."""
    inside: dict[str, list[fx.Node]] = {}
    calls: dict[str, set[str]] = {}
    for node in graph.calls:
        for call, path in stack_of(node).items():
            if path:
                inside.setdefault(path, []).append(node)
                calls.setdefault(path, set()).add(call)
    found: dict[str, fx.Node] = {}
    outputs = set(graph.outputs)
    for path in sorted(inside, key=lambda path: path.count(".")):
        own = set(inside[path])
        if len(calls[path]) > 1 or any(path.startswith(f"{outer}.") for outer in found):
            continue
        ends = [
            node for node in inside[path] if node in outputs or any(user not in own for user in node.users)
        ]
        if len(ends) == 1 and ends[0] not in outputs and _is_known(graph, ends[0]):
            found[path] = ends[0]
    return found


def _is_known(graph: ChannelGraph, node: fx.Node) -> bool:
    """Whether every entry is a constant or is read by nothing."""
    if graph.axis(node) is None or not graph.follows(node) or graph.is_computed(node):
        return False
    if graph.is_written_through_a_view(node):
        return False
    return bool((graph.constant(node) | ~graph.used(node)).all())


def _forms(path: str, graph: ChannelGraph, node: fx.Node, size: tuple[int, ...] | None) -> _Forms:
    axis = graph.axis(node)
    assert axis is not None
    values = np.zeros(axis.ids.shape)
    flags = graph.constant(node) & graph.used(node)
    if flags.any():
        values[flags] = graph.values(node)[flags]
    number = ConstantEdit(module=path) if not values.any() else None
    spread = _broadcast(values, axis.dims, len(graph.shape(node)))
    one = ConstantEdit(module=path, shape=spread.shape, values=tuple(spread.ravel().tolist()))
    return number, one, one.model_copy(update={"size": size}) if size is not None else None


def _broadcast(values: NDArray[np.float64], dims: Sequence[int], count: int) -> NDArray[np.float64]:
    """The values of an axis in a tensor of `count` dimensions, 1 long in all others; of zeros in all."""
    if not values.any():
        return np.zeros((1,) * count)
    spread = values.reshape(values.shape + (1,) * (count - values.ndim))
    return np.moveaxis(spread, range(values.ndim), dims)
