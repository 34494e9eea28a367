"""A stand-in for a CUDA stream: its methods in host memory, at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Mark:
    """An event whose time is its number."""

    count = 0

    def __init__(self) -> None:
        Mark.count += 1
        self.number = Mark.count

    def elapsed_time(self, other: Mark) -> float:
        return float(other.number - self.number)


class HostStream:
    """CudaStream's methods in host memory, at once."""

    handle = 77

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def mark(self) -> Mark:
        return Mark()

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        return launch

    def synchronize(self) -> None:
        pass
