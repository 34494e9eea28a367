"""Modules that count channels, such as a LayerNorm: which of them can go on at their original width.

A channel that is zero adds nothing to a norm's sums, only to the number that they are divided by. So it may go where
the module around the norm gets it back, as a zero, and drops it again behind the norm. That needs a module of one
input and one output that does nothing else: then all that it holds stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from compactmtl.graph.space import Axis, Ids

if TYPE_CHECKING:
    from compactmtl.graph.analysis import Analysis


@dataclass(frozen=True)
class Wide:
    """A module that runs at its original width, and where its channel lies, counted from the last dimension (-1).

    `ids` (N,) are its channels; `parameters` are the names and dimensions that hold one entry for each.
    """

    module: str
    ids: Ids
    input_dim: int
    output_dim: int
    parameters: tuple[tuple[str, int], ...]


def stack_of(node: fx.Node) -> dict[str, str]:
    """The calls of modules around an operator, outermost first, with the paths of the modules."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return {call: entry[0] for call, entry in stack.items()}


def find_wide(analysis: Analysis) -> None:
    """The modules around all calls that count channels; the channels of calls without such a module have to stay."""
    inside: dict[str, list[fx.Node]] = {}
    for node in analysis.traced.calls if analysis.counted else ():
        for call in stack_of(node):
            inside.setdefault(call, []).append(node)
    found: dict[str, list[Wide | None]] = {}
    for node in analysis.counted:
        calls = stack_of(node)
        call, path = list(calls.items())[-1] if calls else ("", "")
        found.setdefault(path, []).append(
            _wide(analysis, path, inside[call], analysis.counted[node]) if path else None
        )
    for node, (ids, reason) in analysis.counted.items():
        path = list(stack_of(node).values() or [""])[-1]
        forms = {None if wide is None else (wide.input_dim, wide.output_dim) for wide in found[path]}
        wide = found[path][0]
        if wide is None or len(forms) > 1:
            analysis.stop(node, ids, reason)
        else:
            analysis.wide[path] = wide
    for path in list(analysis.wide):
        if any(path.startswith(f"{outer}.") for outer in analysis.wide):
            del analysis.wide[path]  # all inside the outer one is at its original width


def _wide(analysis: Analysis, path: str, inside: Sequence[fx.Node], counted: tuple[Ids, str]) -> Wide | None:
    ids, _ = counted
    own = set(inside)
    inputs, parameters = set[fx.Node](), set[fx.Node]()
    for node in inside:
        for source in node.all_input_nodes:
            if analysis.parameter(source) is not None:
                parameters.add(source)
            elif source not in own:
                inputs.add(source)
    outputs = [node for node in inside if any(user not in own for user in node.users)]
    if len(inputs) != 1 or len(outputs) != 1 or any(node in analysis.barriers for node in inside):
        return None
    (source,), (output,) = inputs, outputs
    ends = analysis.axis(source), analysis.axis(output)
    axes = [axis for node in (source, *inside, *parameters) for axis in analysis.layouts.get(node, ())]
    if any(end is None for end in ends) or any(
        axis.ids.shape != ids.shape for axis in axes if axis.ids.size > 1
    ):
        return None
    if any(not _own_parameter(analysis, path, node) for node in parameters):
        return None
    for axis in axes:
        if axis.ids.size > 1:
            analysis.space.union(ids, axis.ids)
    return Wide(
        path,
        ids,
        _from_the_end(analysis, source, ends[0]),
        _from_the_end(analysis, output, ends[1]),
        tuple(
            (name, axis.dims[0])
            for node in parameters
            if (name := analysis.parameter(node)) is not None
            for axis in analysis.layouts.get(node, ())
            if axis.ids.size > 1
        ),
    )


def _own_parameter(analysis: Analysis, path: str, node: fx.Node) -> bool:
    """Whether it is the module's own, read by nothing else, or a single number."""
    name = analysis.parameter(node)
    if name is None or analysis.tensor(node).numel() == 1:
        return True
    alone = all(path in stack_of(user).values() for user in node.users)
    return name.startswith(f"{path}.") and alone and len(analysis.layouts.get(node, ())) == 1


def _from_the_end(analysis: Analysis, node: fx.Node, axis: Axis | None) -> int:
    assert axis is not None
    return axis.dims[0] - len(analysis.shape(node))
