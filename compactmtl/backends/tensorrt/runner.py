"""An open TensorRT engine: buffers, copies, one stream, a CUDA graph a shape, and its profile of layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.base import (
    PROFILE_WARMUP,
    Arrays,
    Description,
    LayerTime,
    Phases,
    Runner,
    TensorInfo,
)
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.tensorrt.api import TensorRT
from compactmtl.backends.tensorrt.build import inspect_engine
from compactmtl.backends.tensorrt.engine import EngineFacts
from compactmtl.backends.tensorrt.types import PRECISIONS, EngineLayer, engine_layers
from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import tensorrt as trt
    from torch import Tensor

    from compactmtl.backends.cuda import CudaStream

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Engine:
    """A deserialized engine with what must live as long as it does."""

    backend: str
    section: str  # of the target, for messages
    api: TensorRT
    engine: trt.ICudaEngine
    runtimes: tuple[trt.Runtime, ...]
    facts: EngineFacts
    device: CudaDevice


@dataclass(frozen=True)
class _Bound:
    """Buffers of all tensors for one set of input shapes, and what launches a run on them."""

    host: dict[str, Tensor]
    device: dict[str, Tensor]
    launch: Callable[[], None]


class TensorRTRunner(Runner):
    """An open engine: host arrays in and out through page-locked buffers, one stream, a CUDA graph a shape."""

    def __init__(self, engine: Engine, cuda_graph: bool, stream: CudaStream | None = None) -> None:
        from compactmtl.backends.cuda import CudaStream

        self._engine: Engine | None = engine
        self._cuda_graph = cuda_graph
        self._stream = CudaStream() if stream is None else stream
        self._context: trt.IExecutionContext | None = _new_context(engine.engine)
        self._bound: dict[tuple[tuple[int, ...], ...], _Bound] = {}
        names = [engine.engine.get_tensor_name(index) for index in range(engine.engine.num_io_tensors)]
        takes = {name: engine.engine.get_tensor_mode(name).name == "INPUT" for name in names}
        self.inputs = tuple(_info(engine.engine, name) for name in names if takes[name])
        self.outputs = tuple(_info(engine.engine, name) for name in names if not takes[name])

    @property
    def engine(self) -> Engine:
        """The open engine; raises ArtifactError after close."""
        if self._engine is None:
            raise ArtifactError("the runner is closed", "open the model again")
        return self._engine

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        bound = self._bind(inputs)
        self._copy_in(bound, inputs)
        bound.launch()
        self._copy_out(bound)
        self._stream.synchronize()
        # copied: the page-locked buffer is overwritten by the next run
        return {name: bound.host[name].numpy().copy() for name in self.output_names}

    def timed(self, inputs: Arrays) -> Phases:
        """One run with a CUDA event between copies and compute."""
        bound = self._bind(inputs)
        self._stage(bound, inputs)
        marks = [self._stream.mark()]
        self._push(bound)
        marks.append(self._stream.mark())
        bound.launch()
        marks.append(self._stream.mark())
        self._copy_out(bound)
        marks.append(self._stream.mark())
        self._stream.synchronize()
        first, second, third = (float(one.elapsed_time(other)) for one, other in itertools.pairwise(marks))
        return Phases(first, second, third)

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        """By TensorRT's own profiler, in a context of its own and without a CUDA graph."""
        api = self.engine.api
        milliseconds: dict[str, list[float]] = {}

        class LayerProfiler(api.IProfiler):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                api.IProfiler.__init__(self)  # pybind11 wants it by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                milliseconds.setdefault(layer_name, []).append(ms)

        context = _new_context(self.engine.engine)
        profiler = LayerProfiler()
        context.profiler = profiler
        bound = self._bind_to(context, _shapes(inputs, self.input_names))
        self._copy_in(bound, inputs)
        for _ in range(PROFILE_WARMUP + repeats):
            bound.launch()
            self._stream.synchronize()  # times are reported when a run is done
        layers = {layer.name: layer for layer in engine_layers(inspect_engine(api, self.engine.engine))}
        return tuple(
            _layer_time(name, times[PROFILE_WARMUP:], quantile, layers.get(name))
            for name, times in milliseconds.items()
        )

    @property
    def device_bytes(self) -> int:
        """Memory that the engine's activations take on the GPU."""
        return int(self.engine.engine.device_memory_size_v2)

    def describe(self) -> Description:
        facts = self.engine.facts
        return Description(
            backend=self.engine.backend,
            version=facts.tensorrt,
            provider="CUDA graph" if self._cuda_graph else "CUDA stream",
            device=self.engine.device.name,
            precision=facts.precision,
            threads=None,
        )

    def close(self) -> None:
        self._bound.clear()
        self._context = None  # before the engine, and that before its runtime
        self._engine = None

    def _bind(self, inputs: Arrays) -> _Bound:
        """Buffers and launch for the shapes of `inputs`; made once a set of shapes."""
        shapes = _shapes(inputs, self.input_names)
        key = tuple(shapes.values())
        if key not in self._bound:
            if self._bound:
                # The graph of one set of shapes may not run while the context is bound to another's buffers.
                self._bound.clear()
            assert self._context is not None
            bound = self._bind_to(self._context, shapes)
            if self._cuda_graph:
                bound.launch()  # the first run of a shape allocates, which a capture must not see
                bound = _Bound(bound.host, bound.device, self._stream.record(bound.launch))
            self._bound[key] = bound
        return self._bound[key]

    def _bind_to(self, context: trt.IExecutionContext, shapes: dict[str, tuple[int, ...]]) -> _Bound:
        section = self.engine.section
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ArtifactError(
                    f"the engine doesn't take shape {shape} for input '{name}'",
                    f"widen the target's {section}.shapes or {section}.max_batch and build again",
                )
        if lacking := context.infer_shapes():
            raise ArtifactError(
                f"the engine can't infer shapes without {lacking}", "export with static shapes"
            )
        host: dict[str, Tensor] = {}
        device: dict[str, Tensor] = {}
        for info in (*self.inputs, *self.outputs):
            shape = tuple(context.get_tensor_shape(info.name))
            dtype = _torch_dtype(info)
            host[info.name] = self._stream.host_buffer(shape, dtype)
            device[info.name] = self._stream.device_buffer(shape, dtype)
            if not context.set_tensor_address(info.name, device[info.name].data_ptr()):
                raise ArtifactError(f"the engine refuses a buffer for '{info.name}'", "report this as a bug")

        def launch() -> None:
            if not context.execute_async_v3(self._stream.handle):
                raise ArtifactError("TensorRT could not queue a run", "see its log; build the engine again")

        return _Bound(host, device, launch)

    def _copy_in(self, bound: _Bound, inputs: Arrays) -> None:
        self._stage(bound, inputs)
        self._push(bound)

    def _stage(self, bound: _Bound, inputs: Arrays) -> None:
        for name in self.input_names:
            bound.host[name].numpy()[...] = inputs[name]

    def _push(self, bound: _Bound) -> None:
        for name in self.input_names:
            self._stream.copy(bound.device[name], bound.host[name])

    def _copy_out(self, bound: _Bound) -> None:
        for name in self.output_names:
            self._stream.copy(bound.host[name], bound.device[name])


def _layer_time(name: str, times: list[float], quantile: float, layer: EngineLayer | None) -> LayerTime:
    kinds = "" if layer is None else ", ".join(sorted(PRECISIONS.get(kind, kind) for kind in layer.types))
    operator = "" if layer is None else layer.kind
    ms = float(np.quantile(times, quantile))
    return LayerTime(name=name, operator=operator, milliseconds=ms, precision=kinds)


def _shapes(inputs: Arrays, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(inputs[name].shape) for name in names}


def _new_context(engine: trt.ICudaEngine) -> trt.IExecutionContext:
    context = engine.create_execution_context()
    if context is None:
        raise ArtifactError("TensorRT could not make an execution context", "free memory on the GPU")
    return context


def _info(engine: trt.ICudaEngine, name: str) -> TensorInfo:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise ArtifactError(
            f"tensor '{name}' of the engine is {kind}", "export with float32 inputs and outputs"
        )
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    return TensorInfo(name, shape, _DTYPES[kind])


def _torch_dtype(info: TensorInfo) -> Any:
    import torch

    return getattr(torch, str(info.dtype))
