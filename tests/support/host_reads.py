"""How often the host reads a value of a tensor: on a GPU each of these waits for all that is queued.

It works on the CPU: what is counted is that a value is asked for, by whatever way.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
WAITING = {
    ATEN._local_scalar_dense,
    ATEN.nonzero,
    ATEN.masked_select,
    ATEN.equal,
    ATEN._unique2,
    ATEN.bincount,
}
METHODS = ("tolist", "numpy", "cpu")  # what torch does for these on the CPU passes no dispatcher


class HostReads(TorchDispatchMode):
    """Within it, `count` is the number of reads so far and `places` says where each was."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []
        self._former: dict[str, Callable[..., Any]] = {}

    @property
    def count(self) -> int:
        return len(self.places)

    def __enter__(self) -> Self:
        for name in METHODS:
            self._former[name] = getattr(Tensor, name)
            setattr(Tensor, name, self._counting(name, self._former[name]))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for name in METHODS:
            delattr(Tensor, name)  # what the base class has shows again

    def _counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return method(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        masks = func.overloadpacket in (ATEN.index, ATEN.index_put_) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if masks or func.overloadpacket in WAITING:
            self._note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def _note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "compactmtl" in frame.filename]
        where = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else "torch"
        self.places.append(f"{what} {where}")
