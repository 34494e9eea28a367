"""Modules that count channels, such as a LayerNorm: which of them can go on at their full width.

A channel that is zero adds nothing to a norm's sums, only to the number that they are divided by. So it may go where
the module around the norm gets it back, as a zero, and drops it again behind the norm. That needs a module of one
input and one output that does nothing else: then all that it holds stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from compactmtl.graph.calls import owner, stack_of
from compactmtl.graph.effect import Counted, FullWidth, Pin
from compactmtl.graph.questions import Questions
from compactmtl.graph.space import Axis, Ids

Unions = list[tuple[Ids, Ids]]


def find_full_width(graph: Questions) -> tuple[dict[str, FullWidth], Unions, list[tuple[fx.Node, Pin]]]:
    """The modules around all calls that count channels, by path, and the channels that go together in them.

    The channels of calls without such a module have to stay: the pins, each with its call. Those of one that counts in groups
    go by whole groups.
    """
    counted = graph.counted
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.calls if counted else ():
        for call in stack_of(node):
            inside.setdefault(call, []).append(node)
    unions: Unions = []
    candidates: dict[str, list[FullWidth | None]] = {}
    for node, own in counted.items():
        call, path = next(reversed(stack_of(node).items()), ("", ""))
        candidates.setdefault(path, []).append(
            _full_width(graph, path, inside[call], own, unions) if path else None
        )
    modules: dict[str, FullWidth] = {}
    pins = []
    for node, own in counted.items():
        path = owner(node)
        forms = {
            None if module is None else (module.input_dim, module.output_dim) for module in candidates[path]
        }
        module = candidates[path][0]
        if (module is None or len(forms) > 1) and own.groups > 1:
            rows = own.ids.reshape(own.groups, -1)
            unions.append((rows, rows[:, :1]))
        elif module is None or len(forms) > 1:
            pins.append((node, Pin(own.ids, own.reason)))
        else:
            modules[path] = module
    for path in list(modules):
        if any(path.startswith(f"{outer}.") for outer in modules):
            del modules[path]  # all inside the outer one is at its full width
    return modules, unions, pins


def _full_width(
    graph: Questions, path: str, inside: Sequence[fx.Node], counted: Counted, unions: Unions
) -> FullWidth | None:
    own = set(inside)
    inputs, parameters = set[fx.Node](), set[fx.Node]()
    for node in inside:
        for source in node.all_input_nodes:
            if graph.parameter(source) is not None:
                parameters.add(source)
            elif source not in own:
                inputs.add(source)
    outputs = [node for node in inside if any(user not in own for user in node.users)]
    if len(inputs) != 1 or len(outputs) != 1 or any(node in graph.barriers for node in inside):
        return None
    (source,), (output,) = inputs, outputs
    ends = graph.axis(source), graph.axis(output)
    axes = [axis for node in (source, *inside, *parameters) for axis in graph.layout(node)]
    if any(end is None for end in ends) or any(
        axis.ids.shape != counted.ids.shape for axis in axes if axis.ids.size > 1
    ):
        return None
    if any(not _own_parameter(graph, path, node) for node in parameters):
        return None
    unions += [(counted.ids, axis.ids) for axis in axes if axis.ids.size > 1]
    return FullWidth(
        path,
        counted.ids,
        _from_the_end(graph, source, ends[0]),
        _from_the_end(graph, output, ends[1]),
        tuple(
            (name, axis.dims[0])
            for node in parameters
            if (name := graph.parameter(node)) is not None
            for axis in graph.layout(node)
            if axis.ids.size > 1
        ),
        source,
        counted.groups,
    )


def _own_parameter(graph: Questions, path: str, node: fx.Node) -> bool:
    """Whether it is the module's own, read by nothing else, or a single number."""
    name = graph.parameter(node)
    if name is None or graph.tensor(node).numel() == 1:
        return True
    alone = all(path in stack_of(user).values() for user in node.users)
    return name.startswith(f"{path}.") and alone and len(graph.layout(node)) == 1


def _from_the_end(graph: Questions, node: fx.Node, axis: Axis | None) -> int:
    assert axis is not None
    return axis.dims[0] - len(graph.shape(node))
