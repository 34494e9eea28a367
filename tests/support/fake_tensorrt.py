"""A stand-in for the module `tensorrt` with the names and signatures of the stub, whose engines run on ONNX Runtime.

Its classes are made from tools/stubs/tensorrt, which tools/check_tensorrt_api.py holds against the real bindings, so
that a call with a wrong name or argument fails here as it would there. An execution reads its inputs from the memory
at the addresses that it was given and writes its outputs likewise: a buffer that is bound wrongly gives wrong numbers.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.machinery
import inspect
import json
import signal
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.tensorrt.types import compute_types
from tests.support.host_stream import HostStream

STUB = Path(__file__).resolve().parents[2] / "tools" / "stubs" / "tensorrt" / "__init__.pyi"
GPU = CudaDevice("Fake GPU", "8.6", 8 << 30, "13.0")
_DTYPES = {1: "FLOAT", 2: "UINT8", 7: "INT64", 10: "HALF"}
_ENUM = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8"}
_SHOWN = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8"}


def stub_module() -> types.ModuleType:
    """The stub as a module: methods that do nothing, with its signatures; enums whose members differ."""
    tree = ast.parse("from __future__ import annotations\n" + STUB.read_text(encoding="utf-8"))
    for number, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(number)  # an ellipsis in the stub
        elif isinstance(node, ast.AnnAssign) and node.value is None:
            node.value = ast.Constant(None)
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    exec(compile(ast.fix_missing_locations(tree), str(STUB), "exec"), module.__dict__)
    return module


class Fake:
    """The module, with what its user may change and what was called, in order."""

    def __init__(self) -> None:
        self.module: Any = stub_module()
        self.calls: list[str] = []
        self.version = "10.16.1.11"
        self.schema = 10  # of the inspector's JSON
        self.parses = True
        self.builds = True
        self.flags: set[str] = {"TF32"}  # on by default in the real one
        self.shown_types: Callable[[str, str], str] = lambda node, kind: kind
        self.parsed_types: Callable[[str, str], str] = lambda node, kind: kind
        self.interrupts = False  # a Ctrl-C comes while it builds
        self.profile: dict[str, tuple[Any, Any, Any]] = {}
        self.caches: list[bytes] = []
        self.config: Any = None
        self.scratch = tempfile.mkdtemp(prefix="fake-engine-")
        self.accepts_cache = True
        self.stream = HostStream.handle  # on which engines are to run
        _fill(self)

    def note(self, call: str) -> None:
        self.calls.append(call)


def install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Fake:
    """Put a fake in the place of TensorRT, the driver, and torch's CUDA."""
    import sys

    fake = Fake()
    fake.module.__version__ = fake.version
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("compactmtl.backends.tensorrt.backend.cuda_device", lambda: (GPU, ""))
    monkeypatch.setattr("compactmtl.backends.tensorrt.backend.torch_failure", lambda device: "")
    monkeypatch.setattr("compactmtl.backends.cuda.CudaStream", HostStream)
    return fake


def _fill(fake: Fake) -> None:
    """Give the module's classes the behavior that the backend relies on."""
    trt = fake.module

    class Network:
        def __init__(self) -> None:
            self.file = ""

        @property
        def num_inputs(self) -> int:
            return len(self.graph.input)

        @property
        def graph(self) -> onnx.GraphProto:
            return onnx.load(self.file).graph

        def get_input(self, index: int) -> Any:
            value = self.graph.input[index]
            shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
            return types.SimpleNamespace(name=value.name, shape=shape)

        @property
        def num_layers(self) -> int:
            return len(self.layers)

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        @property
        def layers(self) -> list[Any]:
            return [
                Layer(trt, node, fake.parsed_types(node, kind))
                for node, kind in compute_types(Path(self.file)).items()
            ]

    class Cache:
        def serialize(self) -> bytes:
            return b"times"

    class Profile:
        def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
            fake.profile[input] = (tuple(min), tuple(opt), tuple(max))

    class Config:
        progress_monitor: Any = None

        def set_flag(self, flag: Any) -> None:
            fake.flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            fake.flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            fake.note(f"{pool.name} {pool_size}")

        def add_optimization_profile(self, profile: Any) -> int:
            fake.note("profile")
            return 0

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            fake.caches.append(serialized_timing_cache)
            return Cache()

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            return fake.accepts_cache or not fake.caches[-1]

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int = 0) -> Any:
            assert flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            fake.note("strongly typed")
            return Network()

        def create_builder_config(self) -> Any:
            fake.config = Config()
            return fake.config

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            fake.note("build")
            if config.progress_monitor is not None and not self._watched(config.progress_monitor):
                return None
            if not fake.builds:
                self.logger.log(trt.ILogger.ERROR, "no kernel fits")
                return None
            return Path(network.file).read_bytes()

        def _watched(self, monitor: Any) -> bool:
            """Whether the build goes on."""
            monitor.phase_start("Building engine", None, 2)
            if fake.interrupts:
                signal.raise_signal(signal.SIGINT)
            going: bool = monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")
            return going

    class Parser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network = network

        @property
        def num_errors(self) -> int:
            return 1

        def parse_from_file(self, model: str) -> bool:
            self.network.file = model
            return fake.parses

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(
                node_name=lambda: "node_7", node_operator=lambda: "Einsum", desc=lambda: "no importer"
            )

    class Inspector:
        def __init__(self, file: Path) -> None:
            self.file = file

        def get_engine_information(self, format: Any) -> str:
            assert format is trt.LayerInformationFormat.JSON
            return layers_json(self.file, fake)

    class Context:
        def __init__(self, data: bytes) -> None:
            self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.addresses: dict[str, int] = {}
            self.profiler: Any = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = shape
            return name not in fake.profile or shape[0] <= fake.profile[name][2][0]

        def infer_shapes(self) -> list[str]:
            return []

        def get_tensor_shape(self, name: str) -> Any:
            if name in self.shapes:
                return self.shapes[name]
            batch = next(iter(self.shapes.values()))[0]
            declared = next(out.shape for out in self.session.get_outputs() if out.name == name)
            return tuple(size if isinstance(size, int) else batch for size in declared)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle == fake.stream
            fake.note("execute")
            feeds = {one.name: self._view(one) for one in self.session.get_inputs()}
            for out, value in zip(self.session.get_outputs(), self.session.run(None, feeds), strict=True):
                self._view(out)[...] = value
            if self.profiler is not None:
                self.profiler.report_layer_time("zeta + relu_of_zeta", 0.5)
            return True

        def _view(self, node: Any) -> Any:
            """The memory at the tensor's address as an array."""
            dtype = np.dtype({"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[node.type])
            shape = self.get_tensor_shape(node.name)
            size = int(np.prod(shape)) * dtype.itemsize
            memory: Any = (ctypes.c_char * size).from_address(self.addresses[node.name])
            return np.frombuffer(memory, dtype).reshape(shape)

    class CudaEngine:
        def __init__(self, data: bytes, file: Path) -> None:
            self.data, self.file = data, file
            graph = onnx.load_from_string(data).graph
            self.values: dict[str, Any] = {value.name: value for value in (*graph.input, *graph.output)}
            self.given = {value.name for value in graph.input}

        @property
        def num_io_tensors(self) -> int:
            return len(self.values)

        @property
        def device_memory_size_v2(self) -> int:
            return 4096

        def get_tensor_name(self, index: int) -> str:
            return list(self.values)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self.given else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[_DTYPES[self.values[name].type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> Any:
            return tuple(d.dim_value or -1 for d in self.values[name].type.tensor_type.shape.dim)

        def create_engine_inspector(self) -> Any:
            return Inspector(self.file)

        def create_execution_context(self) -> Any:
            return Context(self.data)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def load_runtime(self, path: str) -> Any:
            fake.note(f"lean runtime {path}")
            return self

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            fake.note("deserialize")
            file = Path(fake.scratch) / "engine.onnx"
            file.write_bytes(serialized_engine)
            return CudaEngine(serialized_engine, file)

    trt.NetworkDefinitionCreationFlag.__int__ = lambda flag: 1  # 0 in TensorRT 11
    behaviors = {
        Network: trt.INetworkDefinition,
        Cache: trt.ITimingCache,
        Profile: trt.IOptimizationProfile,
        Config: trt.IBuilderConfig,
        Builder: trt.Builder,
        Parser: trt.OnnxParser,
        Inspector: trt.EngineInspector,
        Context: trt.IExecutionContext,
        CudaEngine: trt.ICudaEngine,
        Runtime: trt.Runtime,
        Layer: trt.ILayer,
    }
    for behavior, spec in behaviors.items():
        _check_signatures(behavior, spec)
    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, Parser, Runtime
    trt.init_libnvinfer_plugins = lambda logger, namespace: fake.note("plugins")


class Layer:
    """A matrix product as a parsed network has it, in one type."""

    num_inputs = num_outputs = 1

    def __init__(self, trt: Any, node: str, kind: str) -> None:
        self.name, self.metadata, self.type = node, f"[ONNX Layer: {node}]", trt.LayerType.MATRIX_MULTIPLY
        self.tensor = types.SimpleNamespace(name=f"{node}.out", dtype=trt.DataType[_ENUM[kind]])

    def get_input(self, index: int) -> Any:
        return types.SimpleNamespace(name="image", dtype=self.tensor.dtype)

    def get_output(self, index: int) -> Any:
        return self.tensor


def _check_signatures(behavior: type, spec: type) -> None:
    """A fake has no public name that the stub lacks, and the stub's parameters."""
    for name, member in vars(behavior).items():
        if name.startswith("_") or not callable(member) or isinstance(member, type):
            continue
        assert hasattr(spec, name), f"the stub's {spec.__name__} has no {name}"
        ours, theirs = (list(inspect.signature(one).parameters) for one in (member, getattr(spec, name)))
        assert ours == theirs, f"{spec.__name__}.{name} takes {theirs}, not {ours}"


def layers_json(file: Path, fake: Fake) -> str:
    """What an inspector says of the engine: one layer a compute node, between two reformats."""
    layers: list[dict[str, Any]] = [{"Name": "Reformatting CopyNode for image", "LayerType": "Reformat"}]
    for node, kind in compute_types(file).items():
        shown = _SHOWN[fake.shown_types(node, kind)]
        tensor = (
            {"Name": "x", "Format/Datatype": f"Row major linear {shown}"}
            if fake.schema == 10
            else {"Name": "x", "Format": "Row major linear format (kLINEAR)", "DataType": shown}
        )
        layers.append(
            {
                "Name": f"{node} + relu_of_{node}",
                "LayerType": "CaskConvolution",
                "Inputs": [tensor],
                "Outputs": [tensor],
                "Metadata": f"[ONNX Layer: {node}]\u001e[ONNX Layer: relu_of_{node}]",
            }
        )
    return json.dumps({"Layers": layers, "Bindings": ["image"]})
