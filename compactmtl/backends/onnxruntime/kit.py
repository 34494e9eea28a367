"""ONNX Runtime as a device kit uses it: one named provider or an error, types read from its profile. Part of kit.py."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.backends.device import MISSING, DeviceModel, DeviceRuntime, KitError
from compactmtl.backends.driver import cuda_device
from compactmtl.backends.machine import cpu_name

CPU_PROVIDER = "CPUExecutionProvider"
STEP_ENDS = "_kernel_time"  # how ONNX Runtime ends a node's name in its profile
PROFILED_FIRST = 5  # runs that a profile of layers does not count
PROFILED = {
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "double": "fp64",
    "int8": "int8",
    "uint8": "int8",
}


class OnnxRuntimeOnDevice(DeviceRuntime):
    """Sessions on the target's provider with its threads."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.provider = str(settings["provider"])
        self.on_gpu = self.provider != CPU_PROVIDER

    def missing(self) -> list[tuple[str, str]]:
        install = str(self.settings["install"])
        try:
            import onnxruntime
        except ImportError as error:
            return [(f"onnxruntime can't be imported ({error})", install)]
        if self.settings["plugin"]:
            return self._missing_plugin(install)
        offered = onnxruntime.get_available_providers()
        if self.provider not in offered:
            return [
                (
                    f"this build of onnxruntime {onnxruntime.__version__} has no {self.provider}, only {', '.join(offered)}",
                    f"pip uninstall onnxruntime, then {install}",
                )
            ]
        return []

    def _missing_plugin(self, install: str) -> list[tuple[str, str]]:
        """What a provider lacks that is a package of its own."""
        device, reason = cuda_device()
        lacking = [] if device is not None else [(reason, "a machine with an NVIDIA GPU and its driver")]
        try:
            import onnxruntime_ep_nv_tensorrt_rtx  # noqa: F401
        except (ImportError, OSError) as error:
            lacking.append((f"{self.provider} can't be imported ({error})", install))
        return lacking

    def devices(self) -> list[Any]:
        """The devices that a provider of a package of its own takes, which is registered once. Raises KitError for none."""
        import onnxruntime

        def known() -> list[Any]:
            return [one for one in onnxruntime.get_ep_devices() if one.ep_name == self.provider]

        found = known()
        if not found:
            import onnxruntime_ep_nv_tensorrt_rtx as package

            onnxruntime.register_execution_provider_library(package.get_ep_name(), package.get_library_path())
            found = known()
        if not found:
            raise KitError(
                f"{self.provider} takes none of this machine's devices",
                "it needs an NVIDIA RTX GPU, Ampere or later",
                MISSING,
            )
        return found

    def versions(self) -> dict[str, str]:
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def device(self) -> str:
        if not self.on_gpu:
            return cpu_name()
        gpu, reason = cuda_device()
        return reason if gpu is None else gpu.name

    def board(self) -> str:
        gpu = cuda_device()[0] if self.on_gpu else None
        return "" if gpu is None else gpu.bus

    def open(self, path: Path, example: dict[str, np.ndarray[Any, Any]], folder: Path) -> DeviceModel:
        return OnnxRuntimeModel(self, path, example)

    def session(self, path: Path, profile: str = "") -> Any:
        """A session on the provider; with `profile` it writes there what each node did. Raises KitError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(self.settings["threads"])
        options.inter_op_num_threads = 1
        for key, value in self.settings["config"].items():
            options.add_session_config_entry(key, value)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        provider = (self.provider, self.settings["provider_options"])
        try:
            if self.settings["plugin"]:
                options.add_provider_for_devices(self.devices(), provider[1])
                session = onnxruntime.InferenceSession(str(path), options)
            else:
                session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except KitError:
            raise
        except Exception as error:  # its exceptions are of no common class
            raise KitError(
                f"ONNX Runtime's {self.provider} can't open {path}: {str(error).strip().splitlines()[0]}",
                "where an operator is missing, take a later onnxruntime; else export the kit again",
                MISSING,
            ) from error
        active = session.get_providers()
        if not active or active[0] != self.provider:
            raise KitError(
                f"{self.provider} was asked for, ONNX Runtime fell back to {', '.join(active) or 'nothing'}",
                "install what the provider needs, such as CUDA and cuDNN of its version",
                MISSING,
            )
        return session


class OnnxRuntimeModel(DeviceModel):
    """An open session."""

    def __init__(
        self, runtime: OnnxRuntimeOnDevice, path: Path, example: dict[str, np.ndarray[Any, Any]]
    ) -> None:
        self.runtime, self.path = runtime, path
        self.layers = profiled_layers(runtime, path, example)
        self.session = runtime.session(path)
        self.input_names = tuple(node.name for node in self.session.get_inputs())
        self.output_names = tuple(node.name for node in self.session.get_outputs())

    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        names = list(self.output_names)
        return dict(zip(names, self.session.run(names, arrays)))

    def facts(self) -> dict[str, Any]:
        threads = None if self.runtime.on_gpu else self.session.get_session_options().intra_op_num_threads
        return {"provider": self.session.get_providers()[0], "threads": threads, "layers": self.layers}

    def layer_times(self, arrays: dict[str, np.ndarray[Any, Any]], repeats: int) -> list[tuple[str, float]]:
        times: dict[str, list[float]] = {}
        names: dict[str, str] = {}
        for event in profiled(self.runtime, self.path, arrays, PROFILED_FIRST + repeats):
            name, facts = str(event["name"]), event.get("args", {})
            if event.get("cat") != "Node" or not name.endswith(STEP_ENDS):
                continue
            names[facts["node_index"]] = name[: -len(STEP_ENDS)]
            times.setdefault(facts["node_index"], []).append(event["dur"] / 1e3)
        return [(names[index], float(np.median(ms[PROFILED_FIRST:]))) for index, ms in times.items()]

    def close(self) -> None:
        self.session = None


def profiled(
    runtime: OnnxRuntimeOnDevice, path: Path, arrays: dict[str, np.ndarray[Any, Any]], runs: int
) -> list[dict[str, Any]]:
    """What ONNX Runtime writes of some runs that it profiles itself."""
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        session = runtime.session(path, profile=str(Path(folder) / "profile"))
        for _ in range(runs):
            session.run(None, arrays)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def profiled_layers(
    runtime: OnnxRuntimeOnDevice, path: Path, example: dict[str, np.ndarray[Any, Any]]
) -> dict[str, int]:
    """How many layers with weights ran in which precision, in one run that ONNX Runtime profiled itself."""
    events = profiled(runtime, path, example, 1)
    float_layers, int8_layers = set(runtime.settings["float_layers"]), set(runtime.settings["int8_layers"])
    kinds: dict[str, str] = {}
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") != "Node" or "node_index" not in facts:
            continue
        if facts.get("op_name") in int8_layers:
            kinds[facts["node_index"]] = "int8"
        elif facts.get("op_name") in float_layers and facts.get("input_type_shape"):
            read = next(iter(facts["input_type_shape"][0]), "")
            kinds[facts["node_index"]] = PROFILED.get(read, read)
    counts: dict[str, int] = {}
    for kind in kinds.values():
        counts[kind] = counts.get(kind, 0) + 1
    return counts
