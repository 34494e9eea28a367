"""What stands in a module's place once its result is known or unread: the forward calls it as before, and it computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import Arguments, copied
from compactmtl.surgery.plan import ConstantEdit


class Absent(nn.Module):
    """In place of a module whose result nothing reads: zeros (B, *shape) in the type of the first tensor given, B as that one's."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given = _first_tensor(args, kwargs)
        if all(size == 1 for size in self.shape):
            return given.new_zeros((given.shape[0], *self.shape))  # which the forward may write into
        return given.new_zeros(()).expand(given.shape[0], *self.shape)


class Zero(nn.Module):
    """In place of a module that gives zeros: the number 0, which adds nothing and may be added to in place."""

    def forward(self, *args: Any, **kwargs: Any) -> float:
        return 0.0


class Constant(nn.Module):
    """In place of a module that gives one value for each channel.

    It gives the values as they are, such as (1, C, 1, 1), to be broadcast; or, with `size`, at (B, *size), B as that of the
    first tensor given.
    """

    value: Tensor

    def __init__(self, value: Tensor, size: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.size = tuple(size)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.size:
            return self.value.clone()  # the forward may write into it
        size = (_first_tensor(args, kwargs).shape[0], *self.size)
        return self.value.expand(size).clone()


def size_behind_batch(args: Any, output: Any) -> tuple[int, ...] | None:
    """The size behind the first dimension that a stand-in can give, for it takes that from its first tensor; None: it cannot."""
    first = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)), None)
    if first is None or not isinstance(output, Tensor) or not output.ndim or not first.ndim:
        return None
    return tuple(output.shape[1:]) if output.shape[0] == first.shape[0] else None


def _first_tensor(args: Any, kwargs: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))


def put(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put a module into the place of another, in place, and give that. Raises AttributeError where there is none."""
    replaced = model.get_submodule(path)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return replaced


def put_where_it_holds(
    model: nn.Module, modules: Mapping[str, nn.Module], holds: Callable[[], bool]
) -> tuple[str, ...]:
    """Put modules into their places, in place, as far as `holds` stays true; the paths of those that stay.

    All are tried together. Where that fails those of one name are, such as all `attn`, then what is left of one parent, and
    then one after another, the last first: what gives its place to a stand-in may be read by those behind it alone.
    """
    kept, failed = set[str](), set[frozenset[str]]()

    def attempt(paths: Sequence[str]) -> None:
        if not paths or kept.issuperset(paths) or frozenset(paths) in failed:
            return
        before = {path: put(model, path, modules[path]) for path in paths}
        if holds():
            kept.update(paths)
            return
        failed.add(frozenset(paths))
        for path, module in before.items():
            put(model, path, module)

    attempt(list(modules))
    for part in (2, 0):  # the last part of a path is its name, what stands before it its parent
        alike: dict[str, list[str]] = {}
        for path in modules:
            if path not in kept:
                alike.setdefault(path.rpartition(".")[part], []).append(path)
        for paths in alike.values():
            attempt(paths)
    for path in reversed(list(modules)):
        if path not in kept:
            attempt([path])
    return tuple(path for path in modules if path in kept)


def constant(model: nn.Module, edit: ConstantEdit) -> nn.Module:
    """The stand-in that an edit asks for: `Zero`, or a `Constant` in the type and on the device of the module's parameters.

    A module without any takes those of the model's first. Raises AttributeError where the model has no such module.
    """
    module = model.get_submodule(edit.module)
    if not edit.shape:
        return Zero()
    parameters = (value for part in (module, model) for value in part.parameters())
    like = next((value for value in parameters if value.is_floating_point()), torch.empty(0))
    values = torch.tensor(edit.values, dtype=like.dtype, device=like.device)
    return Constant(values.reshape(edit.shape), edit.size)


def watch_outputs(
    model: nn.Module, arguments: Arguments, paths: Iterable[str], note: Callable[[str, Any, Any], None]
) -> None:
    """Run the model once in eval mode, a copy of one's own, and tell `note` each call of these modules: path, arguments, output."""
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, output, path=path: note(path, args, output)
        )
        for path in paths
    ]
    try:
        with borrowed(model, weights=False), torch.no_grad():
            model(*copied(arguments))
    finally:
        for hook in hooks:
            hook.remove()
