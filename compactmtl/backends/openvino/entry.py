"""The entry of OpenVINO: a device by name, its precision pinned and read back from the compiled model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compactmtl.backends.base import (
    PROFILE_WARMUP,
    Arrays,
    Availability,
    Backend,
    BackendOptions,
    Description,
    DeviceKit,
    LayerTime,
    Runner,
    Shape,
    TensorInfo,
    read_options,
    run_failure,
)
from compactmtl.backends.model_file import external_files
from compactmtl.backends.openvino.kit import OpenVinoOnDevice, executed_layers
from compactmtl.backends.precision import check_precision
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError

if TYPE_CHECKING:
    import openvino

# Int8 is in the model as Q/DQ pairs; what is left in float between them must not become bfloat16.
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
LAYERS = ["Convolution", "Deconvolution", "FullyConnected", "MatMul"]
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
}
CPU = "CPU"
INSTALL = "pip install 'compactmtl[openvino]'"


class OpenVinoOptions(BackendOptions):
    """The key that only this backend reads."""

    device: str = Field(CPU, description="OpenVINO device, such as `CPU`, `GPU` or `NPU`.")


class OpenVinoBackend(Backend):
    """ONNX files on one of OpenVINO's devices."""

    name = "openvino"
    Options = OpenVinoOptions
    packages = ("openvino",)

    def cases(self) -> Iterable[tuple[str, Target]]:
        return [(f"{self.name}, {CPU}", Target(backend=self.name))]

    def on_cpu(self, target: Target) -> bool:
        return _device(target) == CPU

    def availability(self, target: Target) -> Availability:
        device = _device(target)
        try:
            import openvino
        except ImportError as error:
            return Availability(False, f"openvino can't be imported ({error})", INSTALL)
        core = openvino.Core()
        if device not in core.available_devices:
            return Availability(
                False,
                f"openvino {openvino.__version__} sees no device {device}, only"
                f" {', '.join(core.available_devices) or 'none'}",
                "choose one of them with device=NAME, or install the device's driver",
            )
        capable = list(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
        if CAPABILITIES[target.precision] not in capable:
            return Availability(
                False,
                f"{device} of this machine has no {target.precision} in openvino, only {', '.join(capable)}",
                "choose another precision",
            )
        return Availability(True)

    def device_kit(self, target: Target, inputs: Mapping[str, Shape]) -> DeviceKit:
        settings = {
            "device": _device(target),
            "on_cpu": self.on_cpu(target),
            "capability": CAPABILITIES[target.precision],
            "options": _compile_options(target),
            "layer_kinds": LAYERS,
            "precisions": _PRECISIONS,
        }
        install = "pip install openvino"
        return DeviceKit(OpenVinoOnDevice, {**settings, "install": install}, install)

    def open(self, model: Path, target: Target) -> OpenVinoRunner:
        """Open `model` on the target's device with target.threads and its precision pinned.

        Raises MissingDependencyError where device or precision can't be had, ArtifactError where the file is
        no model that OpenVINO can read.
        """
        self.require(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        external_files(model)  # raises where it would read what does not lie beside it
        runner = OpenVinoRunner(_compile(model, target), model, target)
        check_precision(runner.layers, target.precision, f"OpenVINO on {_device(target)}")
        return runner


def _device(target: Target) -> str:
    return read_options(OpenVinoOptions, target).device


def _compile_options(target: Target) -> dict[str, Any]:
    """What the model is compiled with, here and on a device that has a kit."""
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[target.precision],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if _device(target) == CPU:
        options["INFERENCE_NUM_THREADS"] = target.threads
    return options


def _compile(model: Path, target: Target, *, profile: bool = False) -> openvino.CompiledModel:
    import openvino

    device, options = _device(target), {**_compile_options(target), "PERF_COUNT": profile}
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(str(model)), device, options)
    # openvino's one exception, for files that are broken too, and a message of it that quotes a damaged name
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{model} is not a model that OpenVINO can load: {_reason(error)}",
            "a node that it names is one that OpenVINO can't run: choose another target, or change that layer;"
            " a file that it can't read: export it again",
        ) from error


class OpenVinoRunner(Runner):
    """A compiled model with one request; arrays in host memory in and out."""

    def __init__(self, compiled: openvino.CompiledModel, model: Path, target: Target) -> None:
        self._compiled: openvino.CompiledModel | None = compiled
        self._request: Any = compiled.create_infer_request()
        self._model, self._target = model, target
        self.inputs = tuple(_info(port) for port in compiled.inputs)
        self.outputs = tuple(_info(port) for port in compiled.outputs)
        self.layers = executed_layers(compiled, LAYERS, _PRECISIONS)

    @property
    def compiled(self) -> openvino.CompiledModel:
        """The compiled model; raises ArtifactError after close."""
        if self._compiled is None:
            raise ArtifactError("the runner is closed", "open the model again")
        return self._compiled

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.floating[Any]]]:
        _ = self.compiled
        try:
            self._request.infer(dict(inputs))
        except RuntimeError as error:
            raise run_failure(self._model, "OpenVINO", _reason(error)) from error
        # Copies: the request writes its next outputs into the same memory.
        return {
            name: self._request.get_output_tensor(index).data.copy()
            for index, name in enumerate(self.output_names)
        }

    def describe(self) -> Description:
        import openvino

        compiled = self.compiled
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        floats = _PRECISIONS.get(hint, hint)
        on_cpu = _device(self._target) == CPU
        return Description(
            backend=OpenVinoBackend.name,
            version=openvino.__version__.split("-")[0],
            provider=", ".join(compiled.get_property("EXECUTION_DEVICES")),
            device=openvino.Core().get_property(_device(self._target), "FULL_DEVICE_NAME"),
            precision="int8" if self.layers.get("int8") else floats,
            threads=compiled.get_property("INFERENCE_NUM_THREADS") if on_cpu else None,
            layers=self.layers,
        )

    def layer_times(self, inputs: Arrays, repeats: int = 20, quantile: float = 0.5) -> tuple[LayerTime, ...]:
        request = _compile(self._model, self._target, profile=True).create_infer_request()
        times: dict[str, list[float]] = {}
        steps: dict[str, Any] = {}
        for index in range(PROFILE_WARMUP + repeats):
            request.infer(dict(inputs))
            if index < PROFILE_WARMUP:
                continue
            for step in request.profiling_info:
                if step.status == step.Status.EXECUTED:
                    steps[step.node_name] = step
                    times.setdefault(step.node_name, []).append(step.real_time.total_seconds() * 1e3)
        return tuple(
            LayerTime(
                name=name,
                operator=step.node_type,
                milliseconds=float(np.quantile(times[name], quantile)),
                precision=step.exec_type.rpartition("_")[2].lower(),
            )
            for name, step in steps.items()
        )

    def close(self) -> None:
        self._compiled = self._request = None


def _info(port: Any) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorInfo(port.get_any_name(), shape, _DTYPES.get(port.get_element_type().get_type_name()))


def _reason(error: Exception) -> str:
    """The first line of openvino's message that says what is wrong, not where in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frame = (
        "Exception from",
        "Check ",
        "While validating",
        "-- ",
        "FrontEnd API",
        "Summary",
        "Error ",
        "Errors ",
        "Model wasn't fully converted",
    )
    reasons = [line for line in lines if not line.startswith(frame)]
    node = re.search(r"ONNX node '<Node\((\w+)\): ([^>]*)>'", str(error))
    where = f"{node[1]} '{node[2]}': " if node else ""
    return (where + (reasons or lines or ["no reason given"])[0])[:300]
