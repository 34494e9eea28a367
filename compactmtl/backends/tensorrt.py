"""The TensorRT backend: engines of 10.12 and later and of 11, built from ONNX or loaded from beside it.

It was never run on hardware by this project; docs/tensorrt.md says what was checked instead, and how.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.base import (
    Arrays,
    Availability,
    Backend,
    Description,
    LayerTime,
    Phases,
    Runner,
    TensorInfo,
)
from compactmtl.backends.driver import CudaDevice, cuda_device
from compactmtl.backends.tensorrt_build import (
    build_engine,
    deserialize,
    inspect_engine,
    make_logger,
    settings_sha256,
)
from compactmtl.backends.tensorrt_engine import (
    EngineFacts,
    check_facts,
    engine_path,
    model_sha256,
    read_engine,
    write_engine,
)
from compactmtl.backends.tensorrt_types import PRECISIONS, EngineLayer, engine_layers
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt
    from torch import Tensor

    from compactmtl.backends.cuda import CudaStream

PROFILE_WARMUP = 5
FLOOR = (10, 12)  # the first whose strongly typed networks take what ours need
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class TensorRTBackend(Backend):
    """ONNX files as engines on the first visible GPU."""

    name = "tensorrt"

    def availability(self, target: Target) -> Availability:
        """Names everything that is missing at once."""
        missing: list[tuple[str, str]] = []
        device, reason = cuda_device()
        if device is None:
            missing.append((reason, "a machine with an NVIDIA GPU and its driver"))
        if failure := _tensorrt_failure():
            missing.append((failure, "pip install 'compactmtl[tensorrt]'"))
        if failure := _torch_failure(device):
            missing.append((failure, "a CUDA build of torch from https://pytorch.org"))
        if not missing:
            return Availability(True)
        return Availability(
            False,
            "; ".join(reason for reason, _ in missing),
            "needed: " + "; ".join(hint for _, hint in missing),
        )

    def build(self, model: Path, target: Target) -> tuple[Path, ...]:
        """Build the engine of an ONNX file beside it, with its facts and its layers."""
        device = self._device(target)
        built = build_engine(model, target, device)
        files = write_engine(engine_path(model), built.data, built.facts)
        layers = model.with_suffix(".layers.json")
        layers.write_text(built.layers_json, encoding="utf-8")
        return (*files, layers)

    def open(self, model: Path, target: Target) -> TensorRTRunner:
        """Load the engine beside an ONNX file, or build one in memory where there is none.

        Raises MissingDependencyError, and an EngineError for an engine from elsewhere or that is damaged.
        """
        device = self._device(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        import tensorrt as trt

        engine = model if model.suffix == ".engine" else engine_path(model)
        if engine.exists():
            data, facts = read_engine(engine)
            check_facts(
                facts,
                engine,
                tensorrt=trt.__version__,
                gpu=device.name,
                compute_capability=device.capability,
                onnx_sha256=None if model == engine else model_sha256(model),
                settings_sha256=settings_sha256(target),
            )
        else:
            built = build_engine(model, target, device)
            data, facts = built.data, built.facts
        logger, log = make_logger()
        lean = facts.tensorrt != trt.__version__
        runtimes, loaded = deserialize(data, target, logger, log, str(model), lean=lean)
        return TensorRTRunner(Engine(loaded, runtimes, logger, facts, device), target)

    def _device(self, target: Target) -> CudaDevice:
        self.require(target)
        device, reason = cuda_device()
        if device is None:  # it went since
            raise MissingDependencyError(f"no GPU is there: {reason}", "see `compactmtl doctor`")
        return device


def _tensorrt_failure() -> str:
    """Why TensorRT can't be used; empty where it can."""
    try:
        if importlib.util.find_spec("tensorrt") is None:
            return "the package tensorrt is not installed"
        import tensorrt as trt

        version: str = trt.__version__
    except (ImportError, OSError, ValueError, AttributeError) as error:
        return f"tensorrt can't be imported ({error})"
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < FLOOR:
        return f"tensorrt {version} is too old: {FLOOR[0]}.{FLOOR[1]} or later is needed"
    return ""


def _torch_failure(device: CudaDevice | None) -> str:
    """Why torch can't give streams and buffers; empty where it can, or where no GPU is the reason already."""
    try:
        import torch
    except ImportError as error:
        return f"torch can't be imported ({error})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if device is None or torch.cuda.is_available() else "torch finds no CUDA device"


@dataclass(frozen=True)
class Engine:
    """A deserialized engine with what must live as long as it does."""

    engine: trt.ICudaEngine
    runtimes: tuple[trt.Runtime, ...]
    logger: trt.ILogger
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

    def __init__(self, engine: Engine, target: Target, stream: CudaStream | None = None) -> None:
        from compactmtl.backends.cuda import CudaStream

        self._engine: Engine | None = engine
        self._target = target
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

    def layer_times(self, inputs: Arrays, repeats: int = 20) -> tuple[LayerTime, ...]:
        """By TensorRT's own profiler, in a context of its own and without a CUDA graph."""
        import tensorrt as trt

        found: dict[str, list[float]] = {}

        class LayerProfiler(trt.IProfiler):
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)  # pybind11 wants it by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                found.setdefault(layer_name, []).append(ms)

        context = _new_context(self.engine.engine)
        profiler = LayerProfiler()
        context.profiler = profiler
        bound = self._bind_to(context, _shapes(inputs, self.input_names))
        self._copy_in(bound, inputs)
        for _ in range(PROFILE_WARMUP + repeats):
            bound.launch()
            self._stream.synchronize()  # times are reported when a run is done
        layers = {layer.name: layer for layer in engine_layers(inspect_engine(self.engine.engine))}
        return tuple(
            _layer_time(name, times[PROFILE_WARMUP:], layers.get(name)) for name, times in found.items()
        )

    @property
    def device_bytes(self) -> int:
        """Memory that the engine's activations take on the GPU."""
        return int(self.engine.engine.device_memory_size_v2)

    def describe(self) -> Description:
        facts = self.engine.facts
        return Description(
            backend="tensorrt",
            version=facts.tensorrt,
            provider="CUDA graph" if self._target.tensorrt.cuda_graph else "CUDA stream",
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
            if self._target.tensorrt.cuda_graph:
                bound.launch()  # the first run of a shape allocates, which a capture must not see
                bound = _Bound(bound.host, bound.device, self._stream.record(bound.launch))
            self._bound[key] = bound
        return self._bound[key]

    def _bind_to(self, context: trt.IExecutionContext, shapes: dict[str, tuple[int, ...]]) -> _Bound:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ArtifactError(
                    f"the engine doesn't take shape {shape} for input '{name}'",
                    "widen the target's tensorrt.shapes or tensorrt.max_batch and build again",
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


def _layer_time(name: str, times: list[float], layer: EngineLayer | None) -> LayerTime:
    kinds = "" if layer is None else ", ".join(sorted(PRECISIONS.get(kind, kind) for kind in layer.types))
    return LayerTime(name, "" if layer is None else layer.kind, float(np.median(times)), kinds)


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
