"""Some of a model's outputs alone: the others leave, and so do the modules that only they read.

The forward stays the user's own code, and still calls what it calls. A module whose result no remaining output reads is
replaced by one that gives zeros of the same shape without computing or reading anything; exporters drop it and what is
computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.calls import stack_of
from compactmtl.graph.inputs import Arguments, copied
from compactmtl.graph.trace import Traced, trace
from compactmtl.graph.unreached import unreached_modules
from compactmtl.surgery.stand_ins import Absent, put_where_it_holds, size_behind_batch, watch_outputs

_ATTRIBUTE = "kept_outputs"

Name = str | int  # of an output: its key in a dict, its position in a list or tuple


def select(model: nn.Module, outputs: Sequence[Name]) -> None:
    """Let the model's forward give these of its outputs alone, in the model's own order; in place.

    Names and positions are of what the forward gives now: of a model with selected outputs, of those.
    """
    earlier: tuple[Name, ...] | None = getattr(model, _ATTRIBUTE, None)
    if earlier is None:
        model.register_forward_hook(_only)
    else:  # the hook sees all outputs of the forward: positions are counted there
        left = sorted(name for name in earlier if isinstance(name, int))
        outputs = [left[name] if isinstance(name, int) and left else name for name in outputs]
    setattr(model, _ATTRIBUTE, tuple(outputs))


def _only(model: nn.Module, args: Any, output: Any) -> Any:
    names = getattr(model, _ATTRIBUTE)
    known = output if isinstance(output, Mapping) else range(len(output))
    if missing := [name for name in names if name not in known]:
        raise SurgeryError(
            f"{type(model).__name__} gives no output {missing[0]!r}, of which a plan says that it stays",
            "apply the plan to the model that it was made of",
        )
    if isinstance(output, Mapping):
        return {name: value for name, value in output.items() if name in names}
    return type(output)([value for index, value in enumerate(output) if index in names])


def check_outputs(model: nn.Module, arguments: Arguments, outputs: Sequence[Name]) -> None:
    """Raise SurgeryError where the model's forward gives neither a dict with these names nor a list with these positions."""
    if isinstance(outputs, str):
        raise SurgeryError(
            f"outputs is the string {outputs!r}", f"give a list of names, such as [{outputs!r}]"
        )
    with borrowed(model, weights=False), torch.no_grad():
        given = model(*copied(arguments))
    kind = type(given).__name__
    if isinstance(given, Mapping):
        known: list[Name] = list(given)
        what = f"its outputs are {', '.join(map(str, known))}"
    elif type(given) in (list, tuple):
        known = list(range(len(given)))
        what = f"its {kind} has positions 0 to {len(given) - 1}"
    else:
        raise SurgeryError(
            f"{type(model).__name__} gives a {kind}, which has no parts to choose",
            "let its forward return a dict, list or tuple of tensors, or leave `outputs` out",
        )
    if missing := [name for name in outputs if name not in known or isinstance(name, bool)]:
        raise SurgeryError(f"{type(model).__name__} gives no output {missing[0]!r}", what)


def remove_unread(
    model: nn.Module, arguments: Arguments, before: Sequence[str], holds: Callable[[], bool]
) -> dict[str, tuple[int, ...]]:
    """Replace the modules that no selected output reads, in place; for each its path and shape behind the batch.

    `before` are the modules that were not reached before: they stay, whoever calls them. So does a module whose result is
    not one tensor as long as the first that it is given, or whose shape changes from call to call; and one without which
    `holds` is false, as where the forward joins its maps, of one size, with maps of the input's size.

    Raises SurgeryError where the model cannot be traced.
    """
    traced = trace(model, arguments)
    candidates = [path for path in unreached_modules(model, traced) if path not in before]
    shapes = _shapes(model, arguments, candidates)
    absent: dict[str, tuple[int, ...]] = {}
    # A block that hands its input on, with both its branches dead, reads no parameter: what is inside it can go.
    read = _read(traced)
    pending = _outermost(path for path in shapes if path not in read)
    while pending:
        # One value for all positions fits inputs of any size, and costs nothing where the forward goes on to compute with it.
        for one in (True, False):
            tried = {
                path: (1,) * len(shapes[path]) if one else shapes[path]
                for path in pending
                if path not in absent
            }
            stand_ins = {path: Absent(shape) for path, shape in tried.items()}
            absent.update((path, tried[path]) for path in put_where_it_holds(model, stand_ins, holds))
        inside = [
            path
            for outer in pending
            if outer not in absent
            for path in shapes
            if path.startswith(f"{outer}.")
        ]
        pending = _outermost(inside)
    return absent


def _read(traced: Traced) -> set[str]:
    """The modules in whose forward something is computed that an output depends on."""
    pending, seen = list(traced.outputs), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return {path for node in seen for path in stack_of(node).values()}


def _outermost(paths: Iterable[str]) -> list[str]:
    """Of paths of which parents come first those that lie in no other."""
    found: list[str] = []
    for path in paths:
        if not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def _shapes(model: nn.Module, arguments: Arguments, candidates: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Of the modules with parameters among, or below, the candidates that are called: the one shape that they give."""
    seen: dict[str, set[tuple[int, ...] | None]] = {}
    named = dict(model.named_modules())
    inside = [path for path in named if any(path == one or path.startswith(f"{one}.") for one in candidates)]
    watch_outputs(
        model,
        arguments,
        inside,
        lambda path, args, output: seen.setdefault(path, set()).add(size_behind_batch(args, output)),
    )
    alone = {path: next(iter(found)) for path, found in seen.items() if len(found) == 1}
    return {
        path: shape
        for path, module in named.items()  # parents come first
        if (shape := alone.get(path)) is not None and any(True for _ in module.parameters())
    }
