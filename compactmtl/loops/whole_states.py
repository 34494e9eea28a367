"""State dicts at a network's first size, whatever was removed from it: hooks of its modules and of its optimizer.

So checkpoints of any kind need not know that a network shrinks: what they save fits the network as it is built, and
what they load is cut to the network as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.loops.removed import Removed
from compactmtl.surgery.slice_plan import cut, put_back


class WholeStates:
    """Makes `state_dict()` of networks and of their optimizer speak of the first size, until `close`."""

    def __init__(self, removed: Removed) -> None:
        self._removed = removed
        self._handles: list[Any] = []
        self._closed = False
        self._paused = False

    @property
    def active(self) -> bool:
        return not (self._closed or self._paused or self._removed.plan.empty)

    def of(self, model: nn.Module) -> None:
        """A network that is cut as the plan says: the one in training, or an average of it."""
        untyped: Any = model
        self._handles.append(untyped.register_state_dict_post_hook(_Saved(self, model)))
        self._handles.append(untyped.register_load_state_dict_pre_hook(_Loaded(self, model)))

    def of_optimizer(self, optimizer: Optimizer, model: nn.Module) -> None:
        """The optimizer of the network in training."""
        removed = self._removed

        def saved(_: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
            return removed.optimizer_whole(state, optimizer, model) if self.active else None

        def loaded(_: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
            return removed.optimizer_cut(state, optimizer, model) if self.active else None

        self._handles.append(optimizer.register_state_dict_post_hook(saved))
        self._handles.append(optimizer.register_load_state_dict_pre_hook(loaded))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """States are of the size that the network has."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def close(self) -> None:
        """From now on states are of the size that the network has."""
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def put_back(self, state: dict[str, Any], prefix: str) -> None:
        removed = self._removed
        for name, shape in removed.shapes.items():
            value = state.get(prefix + name)
            if isinstance(value, Tensor) and removed.is_cut(name) and tuple(value.shape) != shape:
                state[prefix + name] = put_back(name, value, shape, removed.kept)

    def cut(self, state: dict[str, Any], prefix: str) -> None:
        removed = self._removed
        for name, shape in removed.shapes.items():
            value = state.get(prefix + name)
            if isinstance(value, Tensor) and removed.is_cut(name) and tuple(value.shape) == shape:
                state[prefix + name] = cut(name, value, removed.kept)


class _Hook:
    """A hook of one network. A copy of that network is another one: its copy of the hook does nothing."""

    def __init__(self, states: WholeStates | None = None, model: nn.Module | None = None) -> None:
        self._states = states
        self._model = None if model is None else weakref.ref(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def states(self, module: nn.Module) -> WholeStates | None:
        """Where the module is the one and something was removed from it."""
        mine = self._model is not None and self._model() is module
        return self._states if mine and self._states is not None and self._states.active else None


class _Saved(_Hook):
    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        # with keep_vars a caller asks for the live parameters, not for something to save
        live = any(
            isinstance(value, nn.Parameter) for name, value in state.items() if name.startswith(prefix)
        )
        if (states := self.states(module)) is not None and not live:
            states.put_back(state, prefix)


class _Loaded(_Hook):
    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if (states := self.states(module)) is not None:
            states.cut(state, prefix)
