"""The entry of ONNX Runtime: the provider that was asked for or an error, never a silent fallback."""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.backends.base import (
    PROFILE_WARMUP,
    TENSOR_CORES_INT8,
    Arrays,
    Availability,
    Backend,
    BackendOptions,
    Description,
    DeviceKit,
    LayerTime,
    Link,
    Runner,
    Shape,
    TensorInfo,
    read_options,
    run_failure,
)
from compactmtl.backends.driver import cuda_device
from compactmtl.backends.machine import cpu_name
from compactmtl.backends.model_file import external_files
from compactmtl.backends.onnxruntime import plugin
from compactmtl.backends.onnxruntime.kit import OnnxRuntimeOnDevice
from compactmtl.backends.onnxruntime.links import links
from compactmtl.backends.onnxruntime.plugin import PLUGINS, RTX, WHEELS
from compactmtl.backends.precision import (
    FLOAT_OPS,
    INT8_OPS,
    check_precision,
    file_precision,
    layer_precisions,
    lowest_precision,
)
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# Their engines are no ONNX graph: nothing of them can be written.
COMPILED = (TENSORRT, RTX)
OPTIMIZED = "optimized.onnx"
KERNEL_TIME = "_kernel_time"  # how ONNX Runtime ends a node's name in its profile
ERRORS_ONLY = 3  # ONNX Runtime's log severity
# Without VNNI, x86 adds int8 products in 16 bits and overflows unseen; with this setting it takes a slower, exact way.
EXACT_INT8 = ("session.x64quantprecision", "1")
_EXTRA = {CPU: "cpu"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeOptions(BackendOptions):
    """The key that only this backend reads."""

    provider: str = Field(CPU, description="Execution provider of ONNX Runtime.")


class OnnxRuntimeBackend(Backend):
    """ONNX files on one named execution provider."""

    name = "onnxruntime"
    Options = OnnxRuntimeOptions
    packages = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu13")
    is_reference = True

    def wheel(self, target: Target) -> str:
        provider = _provider(target)
        return WHEELS.get(provider, self.packages[0 if provider == CPU else 1])

    def in_bundle(self, target: Target) -> str:
        if _provider(target) not in PLUGINS:
            return super().in_bundle(target)
        return Path(__file__).with_name("in_bundle_plugin.py").read_text(encoding="utf-8")

    def cases(self) -> Iterable[tuple[str, Target]]:
        for provider in (CPU, CUDA, TENSORRT, RTX):
            yield f"{self.name}, {provider}", Target(backend=self.name, provider=provider)

    def on_cpu(self, target: Target) -> bool:
        return _provider(target) == CPU

    def default_step(self, target: Target) -> int:
        if target.precision == "int8" and _provider(target) in COMPILED:
            return TENSOR_CORES_INT8
        return super().default_step(target)

    def availability(self, target: Target) -> Availability:
        provider = _provider(target)
        extra = _EXTRA.get(provider, "gpu")
        hint = f"pip install 'compactmtl[{extra}]'"
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, f"onnxruntime can't be imported ({error})", hint)
        if not hasattr(onnxruntime, "InferenceSession"):
            # What is left where onnxruntime and onnxruntime-gpu were both installed and one was removed.
            return Availability(
                False,
                "onnxruntime is installed but empty",
                f"pip uninstall onnxruntime onnxruntime-gpu, then {hint}",
            )
        offered = onnxruntime.get_available_providers()
        known = onnxruntime.get_all_providers()
        if provider not in known:
            near = difflib.get_close_matches(provider, known, n=1, cutoff=0.0)
            return Availability(
                False, f"ONNX Runtime knows no provider {provider!r}", f"did you mean {near[0]}?"
            )
        if provider in PLUGINS:
            return plugin.availability(provider)
        if provider not in offered:
            return Availability(
                False,
                f"this build of onnxruntime {onnxruntime.__version__} has no {provider},"
                f" only {', '.join(offered)}",
                f"pip uninstall onnxruntime, then {hint}" if extra == "gpu" else hint,
            )
        if provider in (CUDA, TENSORRT):
            gpu, reason = cuda_device()
            if gpu is None:
                return Availability(
                    False,
                    f"{provider} needs a GPU: {reason}",
                    "run it on a machine with an NVIDIA GPU",
                )
        return Availability(True)

    def device_kit(self, target: Target, inputs: Mapping[str, Shape]) -> DeviceKit | None:
        provider = _provider(target)
        settings = {
            "provider": provider,
            "provider_options": _provider_options(provider),
            "plugin": provider in PLUGINS,
            "threads": target.threads,
            "config": _session_config(provider),
            "float_layers": sorted(FLOAT_OPS),
            "int8_layers": sorted(INT8_OPS),
        }
        install = f"pip install {self.wheel(target)}"
        return DeviceKit(OnnxRuntimeOnDevice, {**settings, "install": install}, install)

    def check_device(self, facts: Mapping[str, Any], model: Path, target: Target) -> dict[str, int]:
        if _provider(target) not in COMPILED:
            return super().check_device(facts, model, target)
        with tempfile.TemporaryDirectory(
            prefix="compactmtl-"
        ) as folder:  # as in `open`: what it was asked for
            layers = _layers(model, Path(folder), target)
        return super().check_device({"layers": layers}, model, target)

    def links(self) -> Iterable[Link]:
        return links()

    def open(self, model: Path, target: Target) -> OnnxRuntimeRunner:
        """Open `model` on the target's provider with target.threads.

        Raises MissingDependencyError where the provider can't be had, ArtifactError where the file is no
        model that ONNX Runtime can load.
        """
        self.require(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
            runner = OnnxRuntimeRunner(_session(model, target, Path(folder)), model, target)
            runner.layers = _layers(model, Path(folder), target)
        check_precision(runner.layers, target.precision, f"ONNX Runtime's {_provider(target)}")
        return runner

    def open_graph(self, model: Path, target: Target) -> OnnxRuntimeRunner:
        """The graph on the CPU provider, with int8 sums that are exact on every processor."""
        on_cpu = Target(backend=self.name, threads=target.threads)
        self.require(on_cpu)
        with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
            return OnnxRuntimeRunner(_session(model, on_cpu, Path(folder), exact=True), model, on_cpu)


def _provider(target: Target) -> str:
    return read_options(OnnxRuntimeOptions, target).provider


def _layers(model: Path, folder: Path, target: Target) -> dict[str, int]:
    """The layers' precisions in the graph that the session made of the model; TensorRT's are those it was asked for."""
    import onnx

    written = folder / OPTIMIZED
    graph = onnx.load(written if written.exists() else model, load_external_data=False).graph
    return layer_precisions(graph, rewritten=_provider(target) not in COMPILED)


def _session(
    model: Path, target: Target, folder: Path, *, profile: bool = False, exact: bool = False
) -> onnxruntime.InferenceSession:
    """Open the model; what ONNX Runtime made of it is written to `folder` where a precision is to be proved.

    `exact`: int8 sums never overflow, on any processor; slower than what a deployed session does by default.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    provider = _provider(target)
    external_files(model)  # raises where it would read what does not lie beside it
    options = onnxruntime.SessionOptions()
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
    elif provider not in COMPILED and (target.precision != "fp32" or _lowered(model)):
        options.optimized_model_filepath = str(folder / OPTIMIZED)
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    if exact:
        options.add_session_config_entry(*EXACT_INT8)
    for key, value in _session_config(provider).items():
        options.add_session_config_entry(key, value)
    broken = (
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.NoModel,
        state.NoSuchFile,
        state.InvalidArgument,
        UnicodeDecodeError,  # a message that quotes a damaged name
    )
    try:
        if provider in PLUGINS:
            options.add_provider_for_devices(plugin.devices(provider), {})
            session = onnxruntime.InferenceSession(str(model), options)
        else:
            session = onnxruntime.InferenceSession(
                str(model), options, providers=[provider], provider_options=[_provider_options(provider)]
            )
    except broken as error:
        raise ArtifactError(
            f"{model} is not a model that ONNX Runtime can load: {_first_line(error)}", "export it again"
        ) from error
    except (state.Fail, state.EPFail, state.NotImplemented, state.RuntimeException) as error:
        if provider == CPU:
            raise ArtifactError(
                f"{model} can't be loaded by ONNX Runtime: {_first_line(error)}", "export it again"
            ) from error
        raise MissingDependencyError(
            f"{provider} can't run {model}: {_first_line(error)}",
            "`compactmtl doctor` says what this machine lacks; or choose a CPU target",
        ) from error
    active = session.get_providers()
    if not active or active[0] != provider:
        raise MissingDependencyError(
            f"{provider} was asked for, ONNX Runtime fell back to {', '.join(active) or 'nothing'}",
            "`compactmtl doctor` says what this machine lacks; or choose a CPU target",
        )
    return session


def _provider_options(provider: str) -> dict[str, str]:
    """Of every session, here and on a device that has a kit: float32 products are not rounded to TF32."""
    return {"use_tf32": "0"} if provider == CUDA else {}


def _session_config(provider: str) -> dict[str, str]:
    """Entries of every session's configuration, here and on a device that has a kit."""
    # Idle threads of one session would otherwise spin on and slow down whatever is measured next.
    config = {"session.force_spinning_stop": "1"}
    if provider != CPU:
        # Without it, nodes that the provider lacks run on the CPU and nothing says so.
        config["session.disable_cpu_ep_fallback"] = "1"
    return config


def _lowered(model: Path) -> bool:
    """Whether a file that is said to be float32 holds anything else; a broken file is ONNX Runtime's to refuse."""
    from google.protobuf.message import DecodeError

    try:
        return file_precision(model) != "fp32"
    except DecodeError:
        return False


class OnnxRuntimeRunner(Runner):
    """An open session; arrays in host memory in, host memory out."""

    def __init__(self, session: onnxruntime.InferenceSession, model: Path, target: Target) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._model = model
        self._target = target
        self.layers: dict[str, int] = {}
        self.inputs = tuple(_info(node) for node in session.get_inputs())
        self.outputs = tuple(_info(node) for node in session.get_outputs())

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The open session; raises ArtifactError after close."""
        if self._session is None:
            raise ArtifactError("the runner is closed", "open the model again")
        return self._session

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        names = list(self.output_names)
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        try:
            outputs = self.session.run(names, dict(inputs))
        except (state.Fail, state.InvalidArgument, state.NotImplemented, state.RuntimeException) as error:
            raise run_failure(self._model, "ONNX Runtime", _first_line(error)) from error
        return dict(zip(names, outputs, strict=True))

    def describe(self) -> Description:
        import onnxruntime

        provider = self.session.get_providers()[0]
        gpu = None if provider == CPU else cuda_device()[0]
        return Description(
            backend=OnnxRuntimeBackend.name,
            version=onnxruntime.__version__,
            provider=provider,
            device=gpu.name if gpu else cpu_name(),
            precision=lowest_precision(self.layers) or self._target.precision,
            threads=self.session.get_session_options().intra_op_num_threads if provider == CPU else None,
            layers=self.layers,
        )

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        with tempfile.TemporaryDirectory(prefix="compactmtl-") as folder:
            session = _session(self._model, self._target, Path(folder), profile=True)
            for _ in range(PROFILE_WARMUP + repeats):
                session.run(None, dict(inputs))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return _layer_times(events, quantile)

    def close(self) -> None:
        self._session = None


def _layer_times(events: list[dict[str, Any]], quantile: float = 0.5) -> tuple[LayerTime, ...]:
    """Of ONNX Runtime's profile: one event a node and run, in the order of execution."""
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(KERNEL_TIME):
            continue
        facts[event["args"]["node_index"]] = event
        times.setdefault(event["args"]["node_index"], []).append(event["dur"] / 1e3)
    return tuple(
        LayerTime(
            name=facts[index]["name"].removesuffix(KERNEL_TIME),
            operator=facts[index]["args"]["op_name"],
            milliseconds=float(np.quantile(samples[PROFILE_WARMUP:], quantile)),
            precision=next(
                (kind for one in facts[index]["args"].get("output_type_shape", []) for kind in one), ""
            ),
        )
        for index, samples in times.items()
    )


def _info(node: onnxruntime.NodeArg) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorInfo(node.name, shape, _DTYPES.get(node.type))


def _first_line(error: Exception) -> str:
    """ONNX Runtime's message without its status prefix and without C++ source positions."""
    text = str(error).strip().splitlines()[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/\S+?\.(cc|h|cpp):\d+ ", "", text)[:300]
