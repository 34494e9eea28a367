"""The entry of TensorRT: engines of 10.12 and later and of 11, built from ONNX or loaded from beside it.

It was never run on hardware by this project; docs/tensorrt.md says what was checked instead, and how.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compactmtl.backends.base import TENSOR_CORES_INT8, Availability, Backend, DeviceKit, Shape
from compactmtl.backends.driver import CudaDevice, cuda_device
from compactmtl.backends.model_file import model_sha256
from compactmtl.backends.tensorrt.build import (
    build_engine,
    deserialize,
    make_logger,
    settings_sha256,
    shape_range,
)
from compactmtl.backends.tensorrt.engine import Here, check_facts, engine_path, read_engine, write_engine
from compactmtl.backends.tensorrt.kit import TensorRtOnDevice
from compactmtl.backends.tensorrt.options import SECTION, TensorRTOptions, tensorrt_config
from compactmtl.backends.tensorrt.trtexec import MAJORS, script, trtexec
from compactmtl.backends.tensorrt.types import PRECISIONS, check_types, compute_types, engine_layers
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError

if TYPE_CHECKING:
    from compactmtl.backends.tensorrt.runner import TensorRTRunner

FLOOR = (10, 12)  # the first whose strongly typed networks take what ours need


class TensorRTBackend(Backend):
    """ONNX files as engines on the first visible GPU."""

    name = "tensorrt"
    Options = TensorRTOptions
    packages = ("tensorrt",)
    device_modules = ("tensorrt",)  # what the bindings may be imported as
    device_install = "pip install tensorrt, or the TensorRT that JetPack brings"

    def default_step(self, target: Target) -> int:
        return TENSOR_CORES_INT8 if target.precision == "int8" else super().default_step(target)

    def with_lean_runtime(self, target: Target, library: Path) -> Target:
        options = tensorrt_config(target).model_copy(update={"lean_runtime": str(library)})
        return target.with_own({SECTION: options.model_dump(mode="json")})

    def companions(self, model: Path) -> tuple[str, ...]:
        return (engine_path(model).name,)

    def scripts(
        self, model: str, target: Target, inputs: Mapping[str, Shape], files: Mapping[str, str]
    ) -> dict[str, str]:
        """One for the trtexec of each major version."""
        return {
            f"trtexec-{major}.sh": script(trtexec(target, model, inputs, major, files=files), major)
            for major in MAJORS
        }

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

    def device_kit(self, target: Target, inputs: Mapping[str, Shape]) -> DeviceKit:
        options = tensorrt_config(target)
        sizes = {
            name: tuple(size if isinstance(size, int) else -1 for size in shape)
            for name, shape in inputs.items()
        }
        ranges = {name: shape_range(name, shape, target) for name, shape in sizes.items()}
        settings = {
            "modules": list(self.device_modules),
            "floor": FLOOR,
            "install": self.device_install,
            "profile": {name: one.model_dump(mode="json") for name, one in ranges.items() if one is not None},
            **options.model_dump(
                mode="json",
                include={
                    "optimization_level",
                    "workspace_mib",
                    "aux_streams",
                    "tf32",
                    "refit",
                    "cuda_graph",
                },
            ),
        }
        return DeviceKit(TensorRtOnDevice, settings, self.device_install)

    def check_device(self, facts: Mapping[str, Any], model: Path, target: Target) -> dict[str, int]:
        expected = compute_types(model)
        seen = check_types(
            expected,
            engine_layers(str(facts.get("inspector"))),
            target.precision,
            accept_unseen=tensorrt_config(target).unseen_types == "accept",
        )
        return dict(Counter(PRECISIONS.get(expected[node], expected[node]) for node in seen.confirmed))

    def open(self, model: Path, target: Target) -> TensorRTRunner:
        """Load the engine beside an ONNX file, or build one in memory where there is none.

        Raises MissingDependencyError, and an EngineError for an engine from elsewhere or that is damaged.
        """
        device = self._device(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        import tensorrt as trt

        from compactmtl.backends.tensorrt.runner import Engine, TensorRTRunner

        engine = model if model.suffix == ".engine" else engine_path(model)
        if engine.exists():
            data, facts = read_engine(engine)
            check_facts(
                facts,
                engine,
                Here(trt.__version__, device.name, device.capability),
                onnx_sha256=None if model == engine else model_sha256(model),
                settings_sha256=settings_sha256(target),
            )
        else:
            built = build_engine(model, target, device)
            data, facts = built.data, built.facts
        logger, log = make_logger()
        lean = facts.tensorrt != trt.__version__
        runtimes, loaded = deserialize(data, target, logger, log, str(model), lean=lean)
        opened = Engine(self.name, loaded, runtimes, logger, facts, device)
        return TensorRTRunner(opened, tensorrt_config(target).cuda_graph)

    def _device(self, target: Target) -> CudaDevice:
        self.require(target)
        device, reason = cuda_device()
        if device is None:  # it went since
            raise MissingDependencyError(f"no GPU is there: {reason}", "see `compactmtl doctor`")
        return device


def _tensorrt_failure() -> str:
    """Why TensorRT can't be used; empty where it can."""
    try:
        if importlib.util.find_spec(TensorRTBackend.name) is None:
            return "the package tensorrt is not installed"
        import tensorrt as trt

        version: str = trt.__version__
    except (ImportError, OSError, ValueError, AttributeError) as error:
        return f"tensorrt can't be imported ({error})"
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < FLOOR:
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
