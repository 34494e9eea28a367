"""What TensorRT and TensorRT for RTX share as backends: engines beside their ONNX file, built or loaded, and run."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compactmtl.backends.base import TENSOR_CORES_INT8, Availability, Backend, DeviceKit, Link, Shape
from compactmtl.backends.driver import CudaDevice, cuda_device
from compactmtl.backends.fit import package_version
from compactmtl.backends.model_file import model_sha256
from compactmtl.backends.tensorrt.api import Library, log_of
from compactmtl.backends.tensorrt.build import Built, Job, build_engine, deserialize
from compactmtl.backends.tensorrt.engine import (
    EngineFacts,
    Here,
    check_facts,
    engine_path,
    read_engine,
    write_engine,
)
from compactmtl.backends.tensorrt.kit import TensorRtOnDevice
from compactmtl.backends.tensorrt.options import EngineConfig
from compactmtl.backends.tensorrt.shapes import shape_range
from compactmtl.backends.tensorrt.types import PRECISIONS, check_types, compute_types, engine_layers
from compactmtl.config.precision import Precision
from compactmtl.config.target import Target
from compactmtl.errors import ArtifactError, MissingDependencyError

if TYPE_CHECKING:
    from compactmtl.backends.tensorrt.runner import TensorRTRunner


# Keys of the options that a device kit builds and runs an engine by.
DEVICE_KEYS = {"optimization_level", "workspace_mib", "aux_streams", "tf32", "refit", "cuda_graph"}


class EngineBackend(Backend):
    """ONNX files as engines on the first visible GPU."""

    library: ClassVar[Library]
    device_install: ClassVar[str]  # what brings the library to a device that has a kit
    # The parser of ONNX files, which both libraries share, refuses these.
    float_ops: ClassVar[Mapping[Precision, frozenset[str]]] = {"bf16": frozenset({"HardSwish", "Mish"})}
    # Settings that change the running of an engine and not the engine.
    runtime_keys: ClassVar[frozenset[str]] = frozenset({"cuda_graph"})

    @abstractmethod
    def config(self, target: Target) -> EngineConfig:
        """The target's section for this backend. Raises ConfigError naming the key."""

    @abstractmethod
    def job(self, target: Target, device: CudaDevice | None) -> Job:
        """What the target asks of the builder, on the device that is here or on none."""

    def lean_runtime(self, target: Target, facts: EngineFacts, where: Path) -> str | None:
        """File of the runtime that an engine of another version needs. Raises ConfigError where none is named."""
        return None

    def default_step(self, target: Target) -> int:
        return TENSOR_CORES_INT8 if target.precision == "int8" else super().default_step(target)

    def companions(self, model: Path) -> tuple[str, ...]:
        return (engine_path(model).name,)

    def links(self) -> Iterable[Link]:
        """By the names of installed distributions, such as tensorrt-cu13-libs: its version, and CUDA's major."""
        stem = self.library.extra
        names = [
            stem,
            *(f"{stem}-cu{major}{part}" for major in (12, 13) for part in ("", "-bindings", "-libs")),
        ]
        for name in names:
            if (version := package_version(name)) is None:
                continue
            yield Link(f"{name} {version}", self.library.label, version)
            if (cuda := re.search(r"-cu(\d+)", name)) is not None:
                yield Link(f"{name} {version}", "CUDA", cuda.group(1))

    def settings_sha256(self, target: Target) -> str:
        """Hash of every key that changes the engine."""
        keys = self.config(target).model_dump_json(exclude=set(self.runtime_keys))
        return hashlib.sha256(
            keys.encode() + f"{target.precision}|{target.latency.batch}".encode()
        ).hexdigest()

    def availability(self, target: Target) -> Availability:
        """Names everything that is missing at once."""
        missing: list[tuple[str, str]] = []
        device, reason = cuda_device()
        if device is None:
            missing.append((reason, "a machine with an NVIDIA GPU and its driver"))
        if failure := self.library.failure():
            missing.append((failure, self.library.hint))
        if failure := torch_failure(device):
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
        return self._write(model, build_engine(model, self.job(target, device), device))

    def _write(self, model: Path, built: Built) -> tuple[Path, ...]:
        files = write_engine(engine_path(model), built.data, built.facts)
        if built.layers_json is None:
            return files
        layers = model.with_suffix(".layers.json")
        layers.write_text(built.layers_json, encoding="utf-8")
        return (*files, layers)

    def device_kit(self, target: Target, inputs: Mapping[str, Shape]) -> DeviceKit:
        job = self.job(target, None)
        sizes = {
            name: tuple(size if isinstance(size, int) else -1 for size in shape)
            for name, shape in inputs.items()
        }
        ranges = {
            name: shape_range(name, shape, job.options, job.batch, job.section)
            for name, shape in sizes.items()
        }
        settings = {
            "label": self.library.label,
            "modules": self.library.modules,
            "floor": self.library.floor,
            "install": self.device_install,
            "profile": {name: one.model_dump(mode="json") for name, one in ranges.items() if one is not None},
            **job.options.model_dump(mode="json", include=DEVICE_KEYS),
        }
        return DeviceKit(TensorRtOnDevice, settings, self.device_install)

    def check_device(self, facts: Mapping[str, Any], model: Path, target: Target) -> dict[str, int]:
        expected = compute_types(model)
        layers = engine_layers(str(facts.get("inspector")))
        accept = self.job(target, None).accept_unseen
        seen = check_types(expected, layers, target.precision, accept_unseen=accept)
        return dict(Counter(PRECISIONS.get(expected[node], expected[node]) for node in seen.confirmed))

    def open(self, model: Path, target: Target) -> TensorRTRunner:
        """Load the engine beside an ONNX file, or build one in memory where there is none.

        Raises MissingDependencyError, and an EngineError for an engine from elsewhere or that is damaged.
        """
        device = self._device(target)
        if not model.is_file():
            raise ArtifactError(f"{model} is not a file", "export the model first")
        from compactmtl.backends.tensorrt.runner import Engine, TensorRTRunner

        api = self.library.load()
        engine = model if model.suffix == ".engine" else engine_path(model)
        if engine.exists():
            data, facts = read_engine(engine)
            check_facts(
                facts,
                engine,
                Here(api.__version__, device.name, device.capability),
                onnx_sha256=None if model == engine else model_sha256(model),
                settings_sha256=self.settings_sha256(target),
            )
        else:
            built = build_engine(model, self.job(target, device), device)
            data, facts = built.data, built.facts
        lean = self.lean_runtime(target, facts, model) if facts.tensorrt != api.__version__ else None
        with log_of(api).listen() as said:
            runtimes, loaded = deserialize(api, data, said, str(model), lean=lean)
        options = self.config(target)
        opened = Engine(self.name, self.job(target, device).section, api, loaded, runtimes, facts, device)
        return TensorRTRunner(opened, options.cuda_graph)

    def _device(self, target: Target) -> CudaDevice:
        self.require(target)
        device, reason = cuda_device()
        if device is None:  # it went since
            raise MissingDependencyError(f"no GPU is there: {reason}", "see `compactmtl doctor`")
        return device


def torch_failure(device: CudaDevice | None) -> str:
    """Why torch can't give streams and buffers; empty where it can, or where no GPU is the reason already."""
    try:
        import torch
    except ImportError as error:
        return f"torch can't be imported ({error})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if device is None or torch.cuda.is_available() else "torch finds no CUDA device"
