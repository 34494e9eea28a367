"""OpenVINO as a device kit uses it: a device by name, its precision pinned and read back. Part of kit.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compactmtl.backends.device import MISSING, DeviceModel, DeviceRuntime, KitError

PROFILED_FIRST = 5  # runs that a profile of layers does not count


class OpenVinoOnDevice(DeviceRuntime):
    """Models compiled for the target's device."""

    def missing(self) -> list[tuple[str, str]]:
        try:
            import openvino
        except ImportError as error:
            return [(f"openvino can't be imported ({error})", str(self.settings["install"]))]
        core, wanted = openvino.Core(), self.settings["device"]
        if wanted not in core.available_devices:
            found = ", ".join(core.available_devices) or "none"
            return [
                (
                    f"openvino {openvino.__version__} sees no device {wanted}, only {found}",
                    "install the device's driver",
                )
            ]
        capable = list(core.get_property(wanted, "OPTIMIZATION_CAPABILITIES"))
        if self.settings["capability"] not in capable:
            return [
                (
                    f"{wanted} of this machine has no {self.settings['capability']}, only {', '.join(capable)}",
                    "export for another precision",
                )
            ]
        return []

    def versions(self) -> dict[str, str]:
        import openvino

        return {"openvino": str(openvino.__version__).split("-")[0]}

    def device(self) -> str:
        import openvino

        return str(openvino.Core().get_property(self.settings["device"], "FULL_DEVICE_NAME"))

    def open(self, path: Path, example: dict[str, np.ndarray[Any, Any]], folder: Path) -> DeviceModel:
        import openvino

        core = openvino.Core()
        try:
            compiled = core.compile_model(
                core.read_model(str(path)), self.settings["device"], self.settings["options"]
            )
        except RuntimeError as error:  # openvino's one exception
            raise KitError(
                f"OpenVINO can't open {path}: {str(error).strip()[:400]}",
                "where an operator is missing, take a later openvino; else export the kit again",
                MISSING,
            ) from error
        return OpenVinoModel(self, compiled, path)


class OpenVinoModel(DeviceModel):
    """A compiled model with one request."""

    def __init__(self, runtime: OpenVinoOnDevice, compiled: Any, path: Path) -> None:
        self.runtime, self.compiled, self.path = runtime, compiled, path
        self.request = compiled.create_infer_request()
        self.input_names = tuple(port.get_any_name() for port in compiled.inputs)
        self.output_names = tuple(port.get_any_name() for port in compiled.outputs)

    def run(self, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self.request.infer(arrays)
        # Copies: the request writes its next outputs into the same memory.
        return {
            name: self.request.get_output_tensor(index).data.copy()
            for index, name in enumerate(self.output_names)
        }

    def facts(self) -> dict[str, Any]:
        on_cpu = self.runtime.settings["on_cpu"]
        return {
            "provider": ", ".join(self.compiled.get_property("EXECUTION_DEVICES")),
            "threads": int(self.compiled.get_property("INFERENCE_NUM_THREADS")) if on_cpu else None,
            "layers": executed_layers(
                self.compiled, self.runtime.settings["layer_kinds"], self.runtime.settings["precisions"]
            ),
        }

    def layer_times(self, arrays: dict[str, np.ndarray[Any, Any]], repeats: int) -> list[tuple[str, float]]:
        import openvino

        core, settings = openvino.Core(), self.runtime.settings
        options = {**settings["options"], "PERF_COUNT": True}
        compiled = core.compile_model(core.read_model(str(self.path)), settings["device"], options)
        request = compiled.create_infer_request()
        times: dict[str, list[float]] = {}
        for index in range(PROFILED_FIRST + repeats):
            request.infer(arrays)
            for step in request.profiling_info if index >= PROFILED_FIRST else ():
                if step.status == step.Status.EXECUTED:
                    times.setdefault(step.node_name, []).append(step.real_time.total_seconds() * 1e3)
        return [(name, float(np.median(ms))) for name, ms in times.items()]

    def close(self) -> None:
        self.request = self.compiled = None


def executed_layers(compiled: Any, kinds: list[str], names: dict[str, str]) -> dict[str, int]:
    """How many layers with weights run in which precision, by OpenVINO's own account of its execution graph.

    `kinds` are the kinds of layers that count, `names` the precisions by OpenVINO's names.
    """
    counts: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if _fact(facts["layerType"]) in kinds:
            precision = _fact(facts["runtimePrecision"])
            kind = names.get(precision, precision)
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _fact(fact: Any) -> str:
    return str(getattr(fact, "value", fact))
