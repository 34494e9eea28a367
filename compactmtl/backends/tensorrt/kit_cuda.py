"""What running an engine needs of the CUDA driver, by ctypes: memory, copies, one stream, events, graphs. Part of kit.py.

The driver's library is there wherever a GPU works; no CUDA toolkit, torch or Python package of CUDA is needed. Names and
arguments are those of the CUDA driver API.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from compactmtl.backends.device import MISSING, WRONG, KitError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Cuda:
    """The first GPU's primary context, which TensorRT uses too, with one stream."""

    def __init__(self, library: Any = None) -> None:
        try:
            if library is None:
                library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
            self.library = library
        except OSError as error:
            raise KitError(f"no NVIDIA driver: {error}", "install the GPU's driver", MISSING) from error
        self.call("cuInit", ctypes.c_uint(0))
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        self.stream = stream

    def call(self, name: str, *arguments: Any) -> None:
        """One function of the driver. Raises KitError with its error's number."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise KitError(
                f"the CUDA driver fails: {name} answers with error {code}",
                "see the error's number in the CUDA driver API; 2 is a GPU whose memory is full",
                MISSING,
            )

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream.value or 0)

    def device_buffer(self, size: int) -> int:
        """The address of memory on the GPU."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value)

    def host_buffer(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray[Any, Any], int]:
        """An array in page-locked memory, and its address."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        pointer = ctypes.c_void_p()
        self.call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        memory = (ctypes.c_char * max(size, 1)).from_address(int(pointer.value or 0))
        array = np.frombuffer(memory, dtype=kind, count=size // kind.itemsize).reshape(shape)
        return array, int(pointer.value or 0)

    def free(self, device: list[int], host: list[int]) -> None:
        """Give memory back."""
        for pointer in device:
            self.call("cuMemFree_v2", ctypes.c_uint64(pointer))
        for pointer in host:
            self.call("cuMemFreeHost", ctypes.c_void_p(pointer))

    def copy_in(self, device: int, host: int, size: int) -> None:
        """Queue a copy to the GPU."""
        self.call(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(device),
            ctypes.c_void_p(host),
            ctypes.c_size_t(size),
            self.stream,
        )

    def copy_out(self, host: int, device: int, size: int) -> None:
        """Queue a copy from the GPU."""
        self.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(host),
            ctypes.c_uint64(device),
            ctypes.c_size_t(size),
            self.stream,
        )

    def synchronize(self) -> None:
        """Wait until all that is queued is done."""
        self.call("cuStreamSynchronize", self.stream)

    def mark(self) -> Any:
        """A point in the stream's time."""
        event = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        self.call("cuEventRecord", event, self.stream)
        return event

    def between(self, first: Any, second: Any) -> float:
        """Milliseconds from one mark to another, both of which are past."""
        milliseconds = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(milliseconds), first, second)
        return float(milliseconds.value)

    def forget(self, marks: list[Any]) -> None:
        """Free marks."""
        for one in marks:
            self.call("cuEventDestroy_v2", one)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Capture what `launch` queues as a CUDA graph; the result replays it on the stream."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.synchronize()
        self.call("cuStreamBeginCapture_v2", self.stream, ctypes.c_int(THREAD_LOCAL))
        failure: KitError | None = None
        try:
            launch()
        except KitError as error:
            failure = error
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        if failure is not None:
            raise KitError(
                f"a run can't be recorded as a CUDA graph: {failure.message}",
                "export the kit with tensorrt.cuda_graph: false",
                WRONG,
            )
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self.call("cuGraphDestroy", graph)
        return lambda: self.call("cuGraphLaunch", executable, self.stream)
