"""The entry of TensorRT: engines of 10.3 and later and of 11, built from ONNX or loaded from beside it.

It was never run on hardware by this project; docs/tensorrt.md says what was checked instead, and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compactmtl.backends.base import Shape
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.tensorrt.api import Library, TensorRT
from compactmtl.backends.tensorrt.backend import EngineBackend
from compactmtl.backends.tensorrt.build import Job, hardware_level
from compactmtl.backends.tensorrt.engine import EngineFacts
from compactmtl.backends.tensorrt.options import SECTION, TensorRTConfig, TensorRTOptions, tensorrt_config
from compactmtl.backends.tensorrt.timing_cache import cache_file
from compactmtl.backends.tensorrt.trtexec import MAJORS, script, trtexec
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRTBackend(EngineBackend):
    """TensorRT, whose builder needs the GPU that it builds for."""

    name = "tensorrt"
    Options = TensorRTOptions
    packages = ("tensorrt",)
    # 10.3 is what JetPack 6 has; strongly typed networks are in it.
    library = Library("TensorRT", ("tensorrt",), extra="tensorrt", floor=(10, 3))
    device_install = "pip install tensorrt, or the TensorRT that JetPack brings"
    runtime_keys = frozenset({"timing_cache", "lean_runtime", "cuda_graph", "unseen_types"})

    def config(self, target: Target) -> TensorRTConfig:
        return tensorrt_config(target)

    def job(self, target: Target, device: CudaDevice | None) -> Job:
        options = self.config(target)

        def configure(api: TensorRT, config: trt.IBuilderConfig) -> None:
            if options.version_compatible:
                config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
                # Else the engine carries host code, and a file that is loaded could run it.
                config.set_flag(api.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
            config.hardware_compatibility_level = hardware_level(api, options.hardware)

        return Job(
            library=self.library,
            section=SECTION,
            options=options,
            precision=target.precision,
            batch=target.latency.batch,
            settings_sha256=self.settings_sha256(target),
            configure=configure,
            hardware=options.hardware,
            version_compatible=options.version_compatible,
            accept_unseen=options.unseen_types == "accept",
            timing_cache=None
            if device is None
            else cache_file(options, self.library.load().__version__, device),
        )

    def lean_runtime(self, target: Target, facts: EngineFacts, where: Path) -> str | None:
        lean = self.config(target).lean_runtime
        if lean is None:
            raise ConfigError(
                f"{where} is of another TensorRT version and carries no runtime",
                "give the lean runtime of the version that built it: tensorrt.lean_runtime",
            )
        return lean

    def with_lean_runtime(self, target: Target, library: Path) -> Target:
        options = tensorrt_config(target).model_copy(update={"lean_runtime": str(library)})
        return target.with_own({SECTION: options.model_dump(mode="json")})

    def scripts(
        self, model: str, target: Target, inputs: Mapping[str, Shape], files: Mapping[str, str]
    ) -> dict[str, str]:
        """One for the trtexec of each major version."""
        return {
            f"trtexec-{major}.sh": script(trtexec(target, model, inputs, major, files=files), major)
            for major in MAJORS
        }
