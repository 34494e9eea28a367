"""Run a module that belongs to somebody else and leave it as it was."""

from __future__ import annotations

import functools
import inspect
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

_HOPS = 3  # objects of other classes that are followed from a module: a cache, its layers, what those hold
_LARGEST = 100_000  # entries of a container at the top level of a file, above which it is data and no cache
# What a module may refer to and no forward writes into: data sets, optimizers, classes, files of code.
_FOREIGN = (
    torch.utils.data.Dataset,
    torch.utils.data.DataLoader,
    torch.optim.Optimizer,
    type,
    types.ModuleType,
)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
_Lru = type(functools.lru_cache(lambda: None))


P = ParamSpec("P")
T = TypeVar("T")


def trainable(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose tensors can be trained with, also where the caller is in inference mode."""

    @functools.wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            return function(*args, **kwargs)

    return outside


@contextmanager
def borrowed(*models: nn.Module, evaluate: bool = True, weights: bool = True) -> Iterator[None]:
    """Run `models` without gradients, in eval mode unless `evaluate` is False, and put everything back afterwards.

    Put back are the attributes of every module, of the objects and containers in them; values of buffers and other
    tensors; whether parameters ask for gradients; modes; and the states of all random generators. So a forward that
    counts its calls, keeps activations or builds anchors for a size leaves no trace. Outside of the modules, in their
    classes, closures and source files, tensors that were put into caches go. Never in inference mode, also where the caller is: a tensor made
    there and kept could not be trained with.

    With `weights` the values of parameters are put back too, which takes a second copy of them for as long: a forward
    may move them, and a layer may merge them when it changes to eval mode. Without, for copies of one's own.
    """
    state = _State(models, weights)
    try:
        with torch.inference_mode(False), torch.no_grad():
            if evaluate:
                for model in models:
                    model.eval()
            yield
    finally:
        state.restore()


class _State:
    """Everything that a forward of some modules may change, with what brings it back."""

    def __init__(self, models: Iterable[nn.Module], weights: bool) -> None:
        self._weights = weights
        self._undo: list[Callable[[], None]] = []
        self._empty: list[dict[Any, Any]] = []  # most of a module's own dicts, such as those of its hooks
        self._seen: dict[int, object] = {}  # holds on to what was seen: an id must not be used again
        self._classes: set[type] = set()
        self._outside = False  # whether what is walked now belongs to no module
        for model in models:
            self._walk(model, 0)
        self._random()

    def restore(self) -> None:
        for undo in self._undo:
            undo()
        for value in self._empty:
            if value:
                value.clear()

    def _walk(self, value: object, hops: int) -> None:
        if type(value) in _PLAIN or isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, dict):
            if value or self._outside:
                self._dict(value, hops)
            else:
                self._empty.append(value)
        elif isinstance(value, (list, deque)):
            self._sequence(value, hops)
        elif isinstance(value, set):
            self._set(value)
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._walk(item, hops)
        elif isinstance(value, np.ndarray):
            kept = value.copy()
            self._undo.append(lambda: np.copyto(value, kept) if not _same_array(value, kept) else None)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(functools.partial(_set_state, value, state))
        elif isinstance(value, _Lru):
            self._cached(value)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self._function(value, hops)
        elif hops < _HOPS and not isinstance(value, _FOREIGN) and not _of_torch(type(value)):
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                self._walk(attributes, hops + 1)

    def _module(self, module: nn.Module) -> None:
        outside, self._outside = self._outside, False
        training = module.training
        attributes = vars(module)
        self._seen[id(attributes)] = attributes
        self._dict(attributes, 0)

        def undo() -> None:
            if module.training != training:  # of a compiled module it is no attribute
                module.training = training

        self._undo.append(undo)
        self._outside = True
        for kind in type(module).__mro__:
            if kind not in self._classes and not _of_torch(kind) and kind is not object:
                self._classes.add(kind)
                self._class(kind)
                names = getattr(sys.modules.get(kind.__module__), "__dict__", {})
                self._file(names, [getattr(value, "__code__", None) for value in vars(kind).values()])
        self._outside = outside

    def _class(self, kind: type) -> None:
        own = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
        for value in own.values():
            self._walk(value, _HOPS)

        def undo() -> None:
            now = {name: value for name, value in vars(kind).items() if not name.startswith("__")}
            for name in now.keys() - own.keys():
                if _holds_tensors(now[name], own.values()):
                    delattr(kind, name)
            for name, value in own.items():
                if now.get(name) is not value and _holds_tensors(now.get(name), [value]):
                    setattr(kind, name, value)

        self._undo.append(undo)

    def _file(self, names: dict[str, Any], codes: list[Any]) -> None:
        """Caches at the top level of a file, `names`, and tensors and numbers there, of those that some code uses."""
        kept = dict[str, object]()
        for key in _globals_used(codes, names):
            value = names[key]
            if isinstance(value, (Tensor, int, float, str, type(None))):
                kept[key] = value
            elif isinstance(value, _Lru) or (
                isinstance(value, (dict, list, set, deque)) and len(value) <= _LARGEST
            ):
                self._walk(value, _HOPS)

        def undo() -> None:
            for key, value in kept.items():
                if names.get(key) is not value and _holds_tensors(names.get(key), [value]):
                    names[key] = value

        self._undo.append(undo)

    def _shallow(self, value: Any) -> None:
        if isinstance(value, set):
            self._set(value)
            return
        is_dict = isinstance(value, dict)
        kept = list(value.items()) if is_dict else list(value)
        fill = functools.partial(_fill_dict if is_dict else _fill_sequence, value, kept)
        outside = self._outside

        def undo() -> None:
            if not outside or _holds_tensors(value, kept):
                fill()

        self._undo.append(undo)

    def _dict(self, value: dict[Any, Any], hops: int) -> None:
        self._shallow(value)
        for item in list(value.values()):
            self._walk(item, hops)

    def _sequence(self, value: list[Any] | deque[Any], hops: int) -> None:
        self._shallow(value)
        for item in list(value):
            self._walk(item, hops)

    def _set(self, value: set[Any]) -> None:
        kept = set(value)

        def undo() -> None:
            if value != kept:
                value.clear()
                value.update(kept)

        self._undo.append(undo)

    def _cached(self, function: Any) -> None:
        before = function.cache_info().currsize

        def undo() -> None:
            if function.cache_info().currsize != before:
                function.cache_clear()  # its values can be made again

        self._undo.append(undo)

    def _function(self, value: Any, hops: int) -> None:
        """What a hook or a patched forward keeps beside itself."""
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._walk(part, hops)
        elif isinstance(value, types.MethodType):
            self._walk(value.__self__, hops)
        elif not str(value.__module__).startswith("torch."):
            outside, self._outside = self._outside, True
            for cell in value.__closure__ or ():
                self._cell(cell, hops)
            for part in (value.__defaults__, vars(value)):
                if part:
                    self._walk(part, hops)
            self._file(value.__globals__, [value.__code__])
            self._outside = outside

    def _cell(self, cell: types.CellType, hops: int) -> None:
        try:
            kept = cell.cell_contents
        except ValueError:  # not filled yet
            return
        self._walk(kept, hops)

        def undo() -> None:
            if cell.cell_contents is not kept and _holds_tensors(cell.cell_contents, [kept]):
                cell.cell_contents = kept

        self._undo.append(undo)

    def _tensor(self, value: Tensor) -> None:
        wants = value.requires_grad
        attributes = getattr(value, "__dict__", None)
        if attributes:
            self._shallow(attributes)
        if value.layout is not torch.strided or value.is_meta or nn.parameter.is_lazy(value):
            return
        with torch.no_grad():
            place = value.data
            copied = self._weights or not isinstance(value, nn.Parameter)
            kept = place.clone() if copied else None

        def undo() -> None:
            if value.requires_grad != wants and value.is_leaf:
                value.requires_grad_(wants)
            if value.data_ptr() != place.data_ptr() or value.shape != place.shape:
                value.data = place
            if kept is not None and not torch.equal(place, kept):
                with torch.inference_mode(place.is_inference()), torch.no_grad():
                    place.copy_(kept)

        self._undo.append(undo)

    def _random(self) -> None:
        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        gpus = torch.cuda.get_rng_state_all() if used else None

        def undo() -> None:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            if gpus is not None:
                torch.cuda.set_rng_state_all(gpus)

        self._undo.append(undo)


def _of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins", "collections", "functools")


def _globals_used(codes: list[Any], names: dict[str, Any]) -> set[str]:
    """What some code, and the functions of its file that it calls, name of `names`."""
    found = set[str]()
    pending = list(codes)
    while pending:
        code = pending.pop()
        if not isinstance(code, types.CodeType):
            continue
        pending += code.co_consts  # functions within functions
        fresh = {name for name in code.co_names if name in names} - found
        found |= fresh
        pending += [
            getattr(inspect.unwrap(names[name]), "__code__", None) for name in fresh if callable(names[name])
        ]
    return found


def _holds_tensors(value: object, kept: Iterable[object]) -> bool:
    """Whether there is a tensor in a value, or in containers in it, that was not in what was kept."""
    known = {id(tensor) for tensor in _tensors(list(kept), 0)}
    return any(id(tensor) not in known for tensor in _tensors(value, 0))


def _tensors(value: object, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set, deque)) and depth < 4:
        for item in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _tensors(item, depth + 1)


def _same_array(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _fill_dict(value: dict[Any, Any], kept: list[tuple[Any, Any]]) -> None:
    now = list(value.items())
    if len(now) != len(kept) or any(
        a is not c or b is not d for (a, b), (c, d) in zip(now, kept, strict=True)
    ):
        value.clear()
        value.update(kept)


def _fill_sequence(value: list[Any] | deque[Any], kept: list[Any]) -> None:
    if len(value) != len(kept) or any(one is not other for one, other in zip(value, kept, strict=True)):
        value.clear()
        value.extend(kept)
