"""A stand-in for the CUDA driver's library, in host memory and at once: what `compactmtl.backends.tensorrt.kit_cuda` calls.

A name that the driver API does not have is an AttributeError here too. Arguments are ctypes values, as the real library
takes them: a plain Python number would be cut to 32 bits there, and is refused here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tests.support.host_stream import HostStream

FULL = 2  # CUDA_ERROR_OUT_OF_MEMORY


class FakeDriver:
    """The functions by name; what was called, what is allocated, and what to answer."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.events = 0
        self.fails: str = ""  # the function that answers with an error
        self.capturing: list[Callable[[], object]] | None = None
        self.recorded: list[Callable[[], object]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        function: Callable[..., None] = getattr(type(self), f"_{name}", None)  # type: ignore[assignment]
        if function is None:
            raise AttributeError(f"the driver has no {name}")

        def call(*arguments: Any) -> int:
            assert not any(isinstance(one, int | float) for one in arguments), f"{name}: a plain number"
            self.calls.append(name)
            if name == self.fails:
                return FULL
            function(self, *arguments)
            return 0

        return call

    def _cuInit(self, flags: Any) -> None:
        assert flags.value == 0

    def _cuDeviceGet(self, device: Any, ordinal: Any) -> None:
        device._obj.value = ordinal.value

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = 5

    def _cuCtxSetCurrent(self, context: Any) -> None:
        assert context.value == 5

    def _cuStreamCreate(self, stream: Any, flags: Any) -> None:
        stream._obj.value = HostStream.handle

    def _allocate(self, pointer: Any, size: Any) -> None:
        memory = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(memory)
        self.memory[ctypes.addressof(memory)] = memory

    _cuMemAlloc_v2 = _cuMemAllocHost_v2 = _allocate

    def _free(self, pointer: Any) -> None:
        del self.memory[pointer.value]

    _cuMemFree_v2 = _cuMemFreeHost = _free

    def _copy(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        assert stream.value == HostStream.handle
        assert max(size.value, 1) == len(self.memory[target.value]) == len(self.memory[source.value])
        ctypes.memmove(target.value, source.value, size.value)

    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _copy

    def _cuMemcpyHtoD_v2(self, target: Any, source: Any, size: Any) -> None:
        assert size.value <= len(self.memory[target.value])
        ctypes.memmove(target.value, source.value, size.value)

    def _cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> None:
        assert size.value <= len(self.memory[source.value])
        ctypes.memmove(target.value, source.value, size.value)

    def _cuCtxSynchronize(self) -> None:
        assert self.capturing is None

    def _cuStreamSynchronize(self, stream: Any) -> None:
        assert self.capturing is None, "a stream that is captured may not be waited for"

    def _cuEventCreate(self, event: Any, flags: Any) -> None:
        self.events += 1
        event._obj.value = self.events

    def _cuEventRecord(self, event: Any, stream: Any) -> None:
        pass

    def _cuEventElapsedTime(self, milliseconds: Any, first: Any, second: Any) -> None:
        milliseconds._obj.value = float(second.value - first.value)

    def _cuEventDestroy_v2(self, event: Any) -> None:
        pass

    def _cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> None:
        self.capturing = []

    def _cuStreamEndCapture(self, stream: Any, graph: Any) -> None:
        assert self.capturing is not None
        self.recorded, self.capturing = self.capturing, None
        graph._obj.value = 9

    def _cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> None:
        assert graph.value == 9
        executable._obj.value = 10

    def _cuGraphDestroy(self, graph: Any) -> None:
        pass

    def _cuGraphLaunch(self, executable: Any, stream: Any) -> None:
        assert executable.value == 10
        for queued in self.recorded:
            queued()
