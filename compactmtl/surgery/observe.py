"""What a run of a network shows of layers in a row and a trace in eval mode does not.

Code behind `if self.training`, such as a drop of paths or a loss beside the output, leaves no call in the graph, and neither does
a write into a tensor that nothing reads afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import copied, register_dataclasses, tensors_in
from compactmtl.surgery.precise import in_double
from compactmtl.surgery.prove import Reference


@dataclass(frozen=True)
class Observed:
    """Modules by their path. Of one that the run does not call nothing is known, and of none where the run fails.

    `read_elsewhere`: anything but the module behind it reads its result, or that module reads another tensor.
    `overwritten`: something writes into its result, or into the row's input before the module behind it is called.
    `written`: something writes into its input or its result afterwards, or the model returns one of them.
    """

    read_elsewhere: frozenset[str] = frozenset()
    overwritten: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()


def observe(
    model: nn.Module, behind: Mapping[str, str], aliased: Iterable[str], expected: Reference, training: bool
) -> Observed:
    """Run a copy of the model once. `behind` has for a module the one that alone may read it; `aliased` may hand on their input."""
    own = copy_model(model, dtype=expected.form.dtype)
    watch = _Watch(behind, aliased)
    inputs = expected.inputs[min(1, len(expected.inputs) - 1)]
    precise = in_double() if expected.form.precise else nullcontext()
    with borrowed(own, weights=False), precise:
        own.train(training)
        for path in {*behind, *behind.values(), *aliased}:
            watch.hook(own, path)  # once the state is known that is put back: what is noted is no part of it
        try:
            with watch:
                outputs = own(*copied(inputs))
        except Exception:
            return Observed()
        register_dataclasses(outputs)
        returned = tensors_in(outputs)
        watch.read(returned)
        watch.give(returned)
    return Observed(*map(frozenset, (watch.read_elsewhere, watch.overwritten, watch.written)))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Holds on to the results of modules, and notes every other call that one of them is given to."""

    def __init__(self, behind: Mapping[str, str], aliased: Iterable[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._behind = behind
        self._before = {after: path for path, after in behind.items()}
        self._aliased = frozenset(aliased)
        self._results: dict[int, tuple[str, Tensor]] = {}  # by id: a tensor that is held keeps its own
        self._places: dict[int, list[tuple[str, Tensor]]] = {}  # by address
        self._pending: dict[
            str, list[Tensor]
        ] = {}  # inputs of a row of which the last modules are to be called
        self._inside = ""
        self.overwritten: set[str] = set()
        self.read_elsewhere: set[str] = set()
        self.written: set[str] = set()

    def hook(self, model: nn.Module, path: str) -> None:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: self._enter(path, [*args, *kwargs.values()]), with_kwargs=True
        )
        module.register_forward_hook(
            lambda _, args, kwargs, output: self._leave(path, [*args, *kwargs.values()], output),
            with_kwargs=True,
        )

    def read(self, values: Iterable[Any]) -> None:
        """These are read by the call that is under way."""
        for value in values:
            path, _ = self._results.get(id(value), ("", None))
            if path and self._behind[path] != self._inside:
                self.read_elsewhere.add(path)

    def give(self, values: Iterable[Tensor]) -> None:
        """These leave the model."""
        for value in values:
            self.written.update(path for path, _ in self._places.get(_address(value), ()))

    def write(self, values: Iterable[Any]) -> None:
        """These are written."""
        for value in values:
            if isinstance(value, Tensor):
                address = _address(value)
                self.written.update(path for path, _ in self._places.get(address, ()))
                self.overwritten.update(
                    path for path, held in self._results.values() if _address(held) == address
                )
                self.overwritten.update(
                    path for path, held in self._pending.items() if address in map(_address, held)
                )

    def _enter(self, path: str, given: Sequence[Any]) -> None:
        self._inside = path
        before = self._before.get(path)
        if before is not None and not any(
            self._results.get(id(value), ("",))[0] == before for value in given
        ):
            self.read_elsewhere.add(before)  # something lies between

    def _leave(self, path: str, given: Sequence[Any], output: Any) -> None:
        self._inside = ""
        if path in self._behind and isinstance(output, Tensor):
            self._results[id(output)] = (path, output)
            earlier = self._pending.pop(self._before.get(path, ""), [])
            self._pending[path] = [*earlier, *(value for value in given if isinstance(value, Tensor))]
        elif path in self._before:
            self._pending.pop(self._before[path], None)
        if path in self._aliased:
            for value in (*given, output):
                if isinstance(value, Tensor):
                    self._places.setdefault(_address(value), []).append((path, value))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.read(tree_leaves((args, kwargs)))
        if self._places or self._results:
            self.write(_written(func, args, kwargs))
        return func(*args, **kwargs)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that a call writes into."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return tree_leaves(found)


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
