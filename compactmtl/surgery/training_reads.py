"""What reads the results of layers in a row in training mode, of which a trace in eval mode says nothing.

Code behind `if self.training`, such as a drop of paths or a loss beside the output, leaves no call in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compactmtl.graph.borrow import borrowed
from compactmtl.graph.copies import copy_model
from compactmtl.graph.inputs import copied, register_dataclasses, tensors_in
from compactmtl.surgery.precise import in_double
from compactmtl.surgery.prove import Reference


def read_in_training(model: nn.Module, behind: Mapping[str, str], expected: Reference) -> frozenset[str]:
    """Of modules those whose result anything but the one call of the module behind them reads in training mode.

    `behind` has for each module the one that alone reads it in eval mode. Empty where the model does not run in training mode,
    and without those that it does not call in it.
    """
    own = copy_model(model, dtype=expected.form.dtype)
    watch = _Watch(behind)
    inputs = expected.inputs[min(1, len(expected.inputs) - 1)]
    precise = in_double() if expected.form.precise else nullcontext()
    with borrowed(own, evaluate=False, weights=False), precise:
        own.train()
        for path in {*behind, *behind.values()}:
            watch.hook(own, path)  # once the state is known that is put back: what is noted is no part of it
        try:
            with watch:
                outputs = own(*copied(inputs))
        except Exception:
            return frozenset()
        register_dataclasses(outputs)
        watch.note(tensors_in(outputs))
    return frozenset(watch.read)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Holds on to the results of modules, and notes every other call that one of them is given to."""

    def __init__(self, behind: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._behind = behind
        self._before = {after: path for path, after in behind.items()}
        self._results: dict[int, tuple[str, Tensor]] = {}  # by id: a tensor that is held keeps its own
        self._inside = ""
        self.read: set[str] = set()

    def hook(self, model: nn.Module, path: str) -> None:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: self._enter(path, [*args, *kwargs.values()]), with_kwargs=True
        )
        module.register_forward_hook(lambda _, args, output: self._leave(path, output))

    def note(self, values: Sequence[Any]) -> None:
        """These are read by the call that is under way."""
        for value in values:
            path, _ = self._results.get(id(value), ("", None))
            if path and self._behind[path] != self._inside:
                self.read.add(path)

    def _enter(self, path: str, given: Sequence[Any]) -> None:
        self._inside = path
        before = self._before.get(path)
        if before is not None and not any(
            self._results.get(id(value), ("",))[0] == before for value in given
        ):
            self.read.add(before)  # it reads another tensor: something lies between

    def _leave(self, path: str, output: Any) -> None:
        self._inside = ""
        if path in self._behind and isinstance(output, Tensor):
            self._results[id(output)] = (path, output)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.note(tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))
