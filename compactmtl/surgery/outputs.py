"""Some of a model's outputs alone: the others leave, and so do the modules that only they read.

The forward stays the user's own code, and still calls what it calls. A module whose result no remaining output reads is
replaced by one that gives zeros of the same shape without computing or reading anything; exporters drop it and what is
computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compactmtl.errors import SurgeryError
from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import Arguments, batch_size, copied
from compactmtl.graph.trace import trace
from compactmtl.graph.unreached import unreached_modules
from compactmtl.surgery.prove import Reference, compare

_ATTRIBUTE = "kept_outputs"

Name = str | int  # of an output: its key in a dict, its position in a list or tuple


class Absent(nn.Module):
    """In place of a module that left: zeros (B, *shape) in the type of the first tensor that it is given, B as that one's."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return given.new_zeros(()).expand(given.shape[0], *self.shape)


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
    model: nn.Module, arguments: Arguments, before: Sequence[str], expected: Reference
) -> dict[str, tuple[int, ...]]:
    """Replace the modules that no selected output reads, in place; for each its path and shape behind the batch.

    `before` are the modules that were not reached with all outputs: they stay, whoever calls them. So does a module whose
    result is not one tensor (batch, …), or whose shape changes from call to call; and one whose zeros the forward cannot
    take on some case of `expected`, such as maps of one size that it joins with maps of the input's size.

    Raises SurgeryError where the model cannot be traced.
    """
    candidates = [path for path in unreached_modules(model, trace(model, arguments)) if path not in before]
    shapes = _shapes(model, arguments, candidates)
    originals = {path: replace(model, path, shape) for path, shape in shapes.items()}
    if not shapes or compare(expected, model).passed:
        return shapes
    for path, module in originals.items():
        _put(model, path, module)
    kept = {}
    for path, shape in shapes.items():
        replace(model, path, shape)
        if compare(expected, model).passed:
            kept[path] = shape
        else:
            _put(model, path, originals[path])
    return kept


def replace(model: nn.Module, path: str, shape: Sequence[int]) -> nn.Module:
    """Put an `Absent` in the place of a module and give that module. Raises AttributeError where there is none."""
    module = model.get_submodule(path)
    _put(model, path, Absent(shape))
    return module


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _shapes(model: nn.Module, arguments: Arguments, candidates: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Of the outermost modules among, or below, the candidates that are called: the one shape that they give."""
    seen: dict[str, set[tuple[int, ...] | None]] = {}
    batch = batch_size(arguments)
    hooks = []

    def watch(path: str, module: nn.Module) -> None:
        def note(_: nn.Module, args: Any, output: Any) -> None:
            plain = isinstance(output, Tensor) and output.ndim > 0 and output.shape[0] == batch
            first = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), None)
            fits = plain and first is not None and first.ndim > 0 and first.shape[0] == batch
            seen.setdefault(path, set()).add(tuple(output.shape[1:]) if fits else None)

        hooks.append(module.register_forward_hook(note))

    named = dict(model.named_modules())
    for path, module in named.items():
        if any(path == one or path.startswith(f"{one}.") for one in candidates):
            watch(path, module)
    try:
        with borrowed(model, weights=False), torch.no_grad():
            model(*copied(arguments))
    finally:
        for hook in hooks:
            hook.remove()
    shapes: dict[str, tuple[int, ...]] = {}
    for path in named:  # parents come first
        found = seen.get(path, {None})
        inside = any(path.startswith(f"{outer}.") for outer in shapes)
        if not inside and len(found) == 1 and (shape := next(iter(found))) is not None:
            shapes[path] = shape
    return shapes
