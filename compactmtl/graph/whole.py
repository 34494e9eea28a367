"""Modules that a trace takes whole, because torch.export cannot look into them: one call, through which nothing is followed.

A run of the example says what such a module gives. In the trace it is a call of the operator `compactmtl::whole`, which reads
the tensors that the module is given and all of its parameters; where the trace is run, so is the module.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.inputs import Arguments, copied

OPERATOR = "compactmtl::whole"
_DEPTH = 6  # of objects and containers within each other


@dataclass(frozen=True)
class _Place:
    """Where the tensor of this number stands."""

    index: int


def apart(value: Any, found: list[Tensor], depth: int = 0) -> Any:
    """A value with a place for each tensor in its containers and plain objects, which are added to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
        return _Place(len(found) - 1)
    if depth > _DEPTH:
        return value
    if isinstance(value, Mapping):
        items = {key: apart(item, found, depth + 1) for key, item in value.items()}
        return type(value)(items) if type(value) is not dict else items  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        parts = [apart(item, found, depth + 1) for item in value]
        if isinstance(value, tuple):
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return parts
    if _is_plain_object(value):
        return _with_attributes(value, lambda item: apart(item, found, depth + 1))
    return value


def together(value: Any, tensors: Sequence[Tensor]) -> Any:
    """What `apart` took apart, with these tensors."""
    if isinstance(value, _Place):
        return tensors[value.index]
    if isinstance(value, Mapping):
        items = {key: together(item, tensors) for key, item in value.items()}
        return type(value)(items) if type(value) is not dict else items  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        parts = [together(item, tensors) for item in value]
        if isinstance(value, tuple):
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return parts
    if _is_plain_object(value):
        return _with_attributes(value, lambda item: together(item, tensors))
    return value


def _is_plain_object(value: object) -> bool:
    """Whether it is of a class that holds tensors in attributes, such as torchvision's ImageList."""
    if isinstance(value, (nn.Module, type)) or callable(value) or type(value).__module__ == "builtins":
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, _Place)


def _with_attributes(value: Any, change: Callable[[Any], Any]) -> Any:
    other = copy.copy(value)
    vars(other).update({name: change(item) for name, item in vars(value).items()})
    return other


def _described(value: Any) -> str:
    """What a value apart from its tensors is, to tell calls apart."""
    if isinstance(value, _Place):
        return f"#{value.index}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_described(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if _is_plain_object(value):
        return f"{type(value).__name__}{_described(vars(value))}"
    return repr(value)


def _numbers_in(value: Any) -> list[complex]:
    """All numbers in a value apart from its tensors."""
    if isinstance(value, (bool, int, float, complex)):
        return [value]
    if isinstance(value, Mapping):
        return [number for item in value.values() for number in _numbers_in(item)]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers_in(item)]
    return _numbers_in(vars(value)) if _is_plain_object(value) else []


def _key(template: Any, tensors: Sequence[Tensor]) -> str:
    return f"{_described(template)} {[(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]}"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in a run: arguments, output, the module that called it, and whether it wrote into its arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    parent: str
    writes: bool


def watch(model: nn.Module, arguments: Arguments) -> dict[str, list[Call]]:
    """The calls of every module, by its path, in one run of the arguments; `model` is left as it was."""
    calls: dict[str, list[Call]] = {}
    stack: list[tuple[str, list[tuple[Tensor, int]]]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            found: list[Tensor] = []
            apart((args, kwargs), found)
            stack.append((path, [(tensor, tensor._version) for tensor in found]))

        return hook

    def leave(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        path, versions = stack.pop()
        writes = any(tensor._version != version for tensor, version in versions)
        parent = stack[-1][0] if stack else ""
        calls.setdefault(path, []).append(Call(args, dict(kwargs), output, parent, writes))

    with borrowed(model):
        for path, module in model.named_modules():
            # The hooks go when the model is put back as it was.
            module.register_forward_pre_hook(enter(path), with_kwargs=True)
            module.register_forward_hook(leave, with_kwargs=True)
        model(*copied(arguments))
    return calls


class Whole:
    """A module that is taken whole, with what it gave for each kind of arguments, and why it is."""

    def __init__(
        self, path: str, module: nn.Module, calls: Sequence[Call], fresh: Sequence[Call] | None, reason: str
    ) -> None:
        """`fresh` are its calls on other values, None where the model does not run on any.

        Raises ValueError where its calls do not say what it gives, or it does more than give it.
        """
        self.path, self.reason, self._module = path, reason, module
        self._given: list[Any] = []  # arguments and outputs apart from their tensors
        self._outputs: list[tuple[Any, list[torch.Size], list[torch.dtype], list[torch.device]]] = []
        self._known: dict[str, int] = {}
        for call in calls:
            if call.writes:
                raise ValueError("it writes into what it is given")
            tensors: list[Tensor] = []
            template = apart((call.args, call.kwargs), tensors)
            results: list[Tensor] = []
            output = apart(call.output, results)
            made = (
                [value.shape for value in results],
                [value.dtype for value in results],
                [value.device for value in results],
            )
            place = self._known.setdefault(_key(template, tensors), len(self._outputs))
            if place == len(self._outputs):
                self._given.append(template)
                self._outputs.append((output, *made))
            elif self._outputs[place][1:] != made or _described(self._outputs[place][0]) != _described(
                output
            ):
                raise ValueError("what it gives for arguments of one size is not always alike")
        if any(_numbers_in(output) for output, *_ in self._outputs):
            self._check_numbers(fresh)
        self.number = next(_numbers)
        _held[self.number] = self

    def _check_numbers(self, fresh: Sequence[Call] | None) -> None:
        """Numbers that it gives are taken for fixed, and what the forward around it does with them: they have to be."""
        for call in fresh or ():
            tensors: list[Tensor] = []
            place = self._known.get(_key(apart((call.args, call.kwargs), tensors), tensors))
            fixed = place is not None and _numbers_in(self._outputs[place][0]) == _numbers_in(
                apart(call.output, [])
            )
            if not fixed:
                raise ValueError("it gives numbers that depend on values")
        if not fresh:
            raise ValueError("it gives numbers, and nothing shows that they do not depend on values")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What stands for the module's forward while the model is traced."""
        tensors: list[Tensor] = []
        template = apart((args, kwargs), tensors)
        place = self._known.get(_key(template, tensors))
        if place is None:
            raise ValueError(f"{self.path} is called with other arguments than in the run of the example")
        read = [value for value in self._module.parameters() if value.is_floating_point()]
        results = _operator()(self.number, place, tensors, read)
        return together(self._outputs[place][0], results)

    def empty(self, place: int) -> list[Tensor]:
        """Tensors like those that the module gave."""
        _, *made = self._outputs[place]
        sizes = zip(*made, strict=True)
        return [torch.empty(size, dtype=dtype, device=device) for size, dtype, device in sizes]

    def run(self, place: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the module gives for these tensors."""
        args, kwargs = together(self._given[place], [tensor.clone() for tensor in tensors])
        with borrowed(self._module):
            results: list[Tensor] = []
            apart(self._module(*args, **kwargs), results)
        return [result.detach().clone() for result in results]


_numbers = itertools.count()
_held: WeakValueDictionary[int, Whole] = WeakValueDictionary()


def held(number: int) -> Whole:
    """The module that a call of the operator stands for; it lives as long as its trace."""
    return _held[number]


def run_whole(number: int, place: int, given: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """The operator: `parameters` are read by the module itself, and are among its arguments to say so."""
    return held(number).run(place, given)


_registered: list[Any] = []


def _operator() -> Any:
    """The operator, registered with torch when the first module is taken whole."""
    if not _registered:
        schema = "(int number, int place, Tensor[] given, Tensor[] parameters) -> Tensor[]"
        made = torch.library.custom_op(OPERATOR, run_whole, mutates_args=(), schema=schema)
        made.register_fake(lambda number, place, given, parameters: held(number).empty(place))
        _registered.append(torch.ops.compactmtl.whole.default)
    return _registered[0]


@contextmanager
def taken_whole(model: nn.Module, wholes: Sequence[Whole]) -> Iterator[None]:
    """Within it, the forward of these modules of a borrowed `model` is one call."""
    modules = [model.get_submodule(whole.path) for whole in wholes]
    before = [vars(module).get("forward") for module in modules]
    for module, whole in zip(modules, wholes, strict=True):
        vars(module)["forward"] = whole
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward
