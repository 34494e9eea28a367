"""torch's CUDA streams, buffers, events and graphs behind one small class: what running an engine needs of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaStream:
    """One CUDA stream with its buffers, copies, timing and graphs."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self._stream.cuda_stream)

    def device_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialized memory on the GPU."""
        return torch.empty(shape, dtype=dtype, device="cuda")

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialized page-locked memory, which copies need to run beside other work."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """A point in the stream's time."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Capture what `launch` queues as a CUDA graph; the result replays it on this stream."""
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with torch.cuda.graph(graph, stream=self._stream):
            launch()

        def replay() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def synchronize(self) -> None:
        """Wait until all that is queued is done."""
        self._stream.synchronize()
