"""TensorRT as a device kit uses it: builds the engine where it runs, through numpy and the driver alone. Part of kit.py.

It was never run on hardware by this project. Strongly typed networks from TensorRT 10.3 on, 11, and TensorRT for RTX.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.backends.device import DAMAGED, MISSING, WRONG, DeviceModel, DeviceRuntime, KitError
from compactmtl.backends.driver import cuda_device
from compactmtl.backends.tensorrt.kit_cuda import Cuda

TENSOR_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
PROFILED_FIRST = 5  # runs that a profile of layers does not count
LOG_LINES = 12  # of TensorRT's own that an error quotes


MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


class TensorRtOnDevice(DeviceRuntime):
    """Engines on the first GPU, built from the kit's graphs and kept in its folder."""

    on_gpu = True

    def __init__(self, settings: dict[str, Any], cuda: Cuda | None = None) -> None:
        super().__init__(settings)
        self._cuda = cuda
        self._log: list[str] = []
        self._logger: Any = None

    def missing(self) -> list[tuple[str, str]]:
        found = []
        device, reason = cuda_device()
        if device is None and self._cuda is None:
            found.append((reason, "a machine with an NVIDIA GPU and its driver"))
        module, failure = self._imported()
        if module is None:
            found.append((failure, str(self.settings["install"])))
        elif not hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or _release(module) < tuple(
            self.settings["floor"]
        ):
            floor = ".".join(str(part) for part in self.settings["floor"])
            found.append(
                (
                    f"{self.settings['label']} {module.__version__} is too old",
                    f"version {floor} or later is needed",
                )
            )
        return found

    def _imported(self) -> tuple[Any, str]:
        """The first of the settings' modules that can be imported, or why none can."""
        failures = []
        for name in self.settings["modules"]:
            if (
                name not in MODULES
            ):  # a kit's settings are data: they choose among these and name no other code
                raise KitError(
                    f"the kit's settings name the module {name}, which is none of {', '.join(MODULES)}",
                    "kit.json was changed: take the kit again from the machine that exported it",
                    DAMAGED,
                )
            try:
                return importlib.import_module(name), ""
            except (ImportError, OSError) as error:
                failures.append(f"{name} can't be imported ({error})")
        return None, "; ".join(failures)

    @property
    def trt(self) -> Any:
        """The runtime's module. Raises KitError where there is none."""
        module, failure = self._imported()
        if module is None:
            raise KitError(failure, str(self.settings["install"]), MISSING)
        return module

    @property
    def cuda(self) -> Cuda:
        """The driver, asked when it is needed first."""
        if self._cuda is None:
            self._cuda = Cuda()
        return self._cuda

    def versions(self) -> dict[str, str]:
        device, _ = cuda_device()
        driver = {} if device is None else {"CUDA driver": device.driver}
        return {str(self.settings["label"]): str(self.trt.__version__), **driver}

    def device(self) -> str:
        device, reason = cuda_device()
        return reason if device is None else device.name

    def board(self) -> str:
        device, _ = cuda_device()
        return "" if device is None else device.bus

    def logger(self) -> Any:
        """One logger for all, which keeps warnings and errors."""
        if self._logger is None:
            trt, kept = self.trt, self._log

            class KeepingLogger(trt.ILogger):  # type: ignore[name-defined, misc]
                def __init__(self) -> None:
                    trt.ILogger.__init__(self)  # pybind11 wants it by name

                def log(self, severity: Any, msg: str) -> None:
                    if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                        kept.append(f"{severity.name.lower()}: {msg}")

            self._logger = KeepingLogger()
            trt.init_libnvinfer_plugins(self._logger, "")
        return self._logger

    def said(self) -> str:
        """The last of what TensorRT logged."""
        return "\n".join(f"    {line}" for line in self._log[-LOG_LINES:] or ["it gave no reason"])

    def open(self, path: Path, example: dict[str, np.ndarray[Any, Any]], folder: Path) -> DeviceModel:
        data, seconds = self._engine(path, folder)
        runtime = self.trt.Runtime(self.logger())
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise KitError(
                f"{self.settings['label']} can't load the engine of {path}:\n{self.said()}",
                f"remove {folder}",
                MISSING,
            )
        return TensorRtModel(self, runtime, engine, seconds)

    def _engine(self, path: Path, folder: Path) -> tuple[bytes, float | None]:
        """The engine of a graph, built unless one of the same graph, version, GPU and settings lies in `folder`.

        Also the seconds that building took; None where it was there.
        """
        file, facts_file = folder / f"{path.stem}.engine", folder / f"{path.stem}.engine.json"
        graph = hashlib.sha256()
        for part in sorted(path.parent.iterdir()):  # its weights may lie beside it
            graph.update(part.read_bytes())
        made_of = {
            "graph": graph.hexdigest(),
            "versions": self.versions(),
            "gpu": self.device(),
            "settings": self.settings,
        }
        try:
            facts, data = json.loads(facts_file.read_text(encoding="utf-8")), file.read_bytes()
            if facts == {**made_of, "engine": hashlib.sha256(data).hexdigest()}:
                return data, None
        except (OSError, ValueError):
            pass  # none is there, or half of one
        print(f"building the engine of {path}; this takes minutes on a small device", file=sys.stderr)
        started = time.monotonic()
        data = self.build(path)
        seconds = time.monotonic() - started
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        facts = {**made_of, "engine": hashlib.sha256(data).hexdigest()}
        facts_file.write_text(json.dumps(facts), encoding="utf-8")
        return data, seconds

    def build(self, path: Path) -> bytes:
        """Parse a graph and build its engine. Raises KitError with the parser's or builder's own words."""
        trt = self.trt
        builder = trt.Builder(self.logger())
        # The flag's number differs between 10 and 11.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger())
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            lines = [f"    node {one.node_name()} ({one.node_operator()}): {one.desc()}" for one in errors]
            raise KitError(
                f"{self.settings['label']} {trt.__version__} can't parse {path}:\n" + "\n".join(lines),
                "an operator that is missing may be there in a later version, or at another onnx.opset of the target",
                WRONG,
            )
        config = builder.create_builder_config()
        self._configure(config)
        if self.settings["profile"]:
            profile = builder.create_optimization_profile()
            for name, shapes in self.settings["profile"].items():
                profile.set_shape(name, tuple(shapes["min"]), tuple(shapes["opt"]), tuple(shapes["max"]))
            if config.add_optimization_profile(profile) < 0:
                raise KitError(
                    f"{self.settings['label']} refuses the shapes {self.settings['profile']}",
                    "mend tensorrt.shapes",
                )
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise KitError(
                f"{self.settings['label']} {trt.__version__} can't build an engine of {path}:\n{self.said()}",
                "a larger tensorrt.workspace_mib or a lower tensorrt.optimization_level of the target may help",
                WRONG,
            )
        data = bytes(serialized)
        # In the order in which they need each other: the bindings don't keep a parser's network.
        del serialized, config, parser, network, builder
        return data

    def _configure(self, config: Any) -> None:
        trt, settings = self.trt, self.settings
        config.builder_optimization_level = settings["optimization_level"]
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector shows names alone
        if settings["workspace_mib"] is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace_mib"] << 20)
        if settings["aux_streams"] is not None:
            config.max_aux_streams = settings["aux_streams"]
        if settings["tf32"]:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and then float32 is not float32
        if settings["refit"]:
            config.set_flag(trt.BuilderFlag.REFIT)


class TensorRtModel(DeviceModel):
    """An open engine: page-locked buffers, one stream and, where the target asks for it, a CUDA graph a shape."""

    def __init__(
        self, runtime: TensorRtOnDevice, loader: Any, engine: Any, build_seconds: float | None
    ) -> None:
        self.runtime, self.cuda = runtime, runtime.cuda
        self.loader, self.engine, self.build_seconds = loader, engine, build_seconds
        trt = runtime.trt
        self.inspector = engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        self.context = engine.create_execution_context()
        if self.context is None:
            raise KitError("no execution context could be made", "free memory on the GPU", MISSING)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        takes = [engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self.input_names = tuple(name for name, given in zip(names, takes) if given)
        self.output_names = tuple(name for name, given in zip(names, takes) if not given)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.host: dict[str, np.ndarray[Any, Any]] = {}
        self.host_at: dict[str, int] = {}
        self.device_at: dict[str, int] = {}
        self.launch: Any = None

    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self._bind(arrays)
        self._copy_in(arrays)
        self.launch()
        self._copy_out()
        self.cuda.synchronize()
        return {name: self.host[name].copy() for name in self.output_names}

    def phases(self, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[float, float, float] | None:
        self._bind(arrays)
        marks = [self.cuda.mark()]
        self._copy_in(arrays)
        marks.append(self.cuda.mark())
        self.launch()
        marks.append(self.cuda.mark())
        self._copy_out()
        marks.append(self.cuda.mark())
        self.cuda.synchronize()
        copy_in, compute, copy_out = (self.cuda.between(marks[index], marks[index + 1]) for index in range(3))
        self.cuda.forget(marks)
        return copy_in, compute, copy_out

    def facts(self) -> dict[str, Any]:
        return {
            "provider": "CUDA graph" if self.runtime.settings["cuda_graph"] else "CUDA stream",
            "threads": None,
            "inspector": self.inspector,
            "build_seconds": self.build_seconds,
        }

    def layer_times(self, arrays: dict[str, np.ndarray[Any, Any]], repeats: int) -> list[tuple[str, float]]:
        """By TensorRT's own profiler, in a context of its own and without a CUDA graph."""
        trt = self.runtime.trt
        times: dict[str, list[float]] = {}

        class KitProfiler(trt.IProfiler):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)  # pybind11 wants it by name

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self._bind(arrays)
        self._copy_in(arrays)
        context, profiler = self.engine.create_execution_context(), KitProfiler()
        if context is None:
            raise KitError("no execution context could be made", "free memory on the GPU", MISSING)
        for name in self.input_names:
            context.set_input_shape(name, tuple(arrays[name].shape))
        for name, place in self.device_at.items():
            context.set_tensor_address(name, place)
        context.profiler = profiler
        for _ in range(PROFILED_FIRST + repeats):
            if not context.execute_async_v3(self.cuda.handle):
                raise KitError(f"a run could not be queued:\n{self.runtime.said()}", "build again", WRONG)
            self.cuda.synchronize()  # times are reported when a run is done
        made_of = graph_names(self.inspector)
        return [
            (made_of.get(name, name), float(np.median(ms[PROFILED_FIRST:]))) for name, ms in times.items()
        ]

    def close(self) -> None:
        self._free()
        self.context = self.engine = self.loader = None

    def _free(self) -> None:
        self.launch = None
        self.cuda.free(list(self.device_at.values()), list(self.host_at.values()))
        self.host, self.host_at, self.device_at = {}, {}, {}

    def _bind(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Buffers and launch for the shapes of `arrays`; made anew where the shapes change."""
        shapes = {name: tuple(arrays[name].shape) for name in self.input_names}
        if shapes == self.shapes and self.launch is not None:
            return
        self._free()
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise KitError(
                    f"the engine doesn't take shape {shape} for input '{name}'",
                    "widen the target's tensorrt.shapes or tensorrt.max_batch and export the kit again",
                    WRONG,
                )
        lacking = self.context.infer_shapes()
        if lacking:
            raise KitError(
                f"the engine can't infer shapes without {lacking}", "export with static shapes", WRONG
            )
        for name in self.input_names + self.output_names:
            kind = self.engine.get_tensor_dtype(name).name
            if kind not in TENSOR_TYPES:
                raise KitError(
                    f"tensor '{name}' of the engine is {kind}",
                    "export with float32 inputs and outputs",
                    WRONG,
                )
            shape = tuple(int(size) for size in self.context.get_tensor_shape(name))
            self.host[name], self.host_at[name] = self.cuda.host_buffer(shape, TENSOR_TYPES[kind])
            self.device_at[name] = self.cuda.device_buffer(self.host[name].nbytes)
            if not self.context.set_tensor_address(name, self.device_at[name]):
                raise KitError(f"the engine refuses a buffer for '{name}'", "report this as a bug", WRONG)
        self.launch = self._enqueue
        if self.runtime.settings["cuda_graph"]:
            self._enqueue()  # the first run of a shape allocates, which a capture must not see
            self.launch = self.cuda.record(self._enqueue)
        self.shapes = shapes

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.cuda.handle):
            raise KitError(f"a run could not be queued:\n{self.runtime.said()}", "build again", WRONG)

    def _copy_in(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        for name in self.input_names:
            self.host[name][...] = arrays[name]
            self.cuda.copy_in(self.device_at[name], self.host_at[name], self.host[name].nbytes)

    def _copy_out(self) -> None:
        for name in self.output_names:
            self.cuda.copy_out(self.host_at[name], self.device_at[name], self.host[name].nbytes)


def graph_names(inspector: str) -> dict[str, str]:
    """The graph's node that each layer of an engine begins with, where the inspector tells it."""
    found: dict[str, str] = {}
    for layer in json.loads(inspector or "{}").get("Layers", []):
        if isinstance(layer, dict):
            nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))
            if nodes:
                found[str(layer.get("Name", ""))] = nodes[0]
    return found


def _release(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in str(module.__version__).split(".")[:2] if part.isdigit())
