"""The entry of TensorRT for RTX: engines for a list of compute capabilities, built where there is no GPU as well.

Its parser and builder run in this project's tests. Its engines were never run; docs/tensorrt.md has what was checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compactmtl.backends.base import Ahead, Availability
from compactmtl.backends.driver import CudaDevice
from compactmtl.backends.tensorrt.api import Library, TensorRT
from compactmtl.backends.tensorrt.backend import EngineBackend
from compactmtl.backends.tensorrt.build import Built, Job, build_engine
from compactmtl.backends.tensorrt.network import NetworkLayer
from compactmtl.backends.tensorrt_rtx.capability import check_capabilities
from compactmtl.backends.tensorrt_rtx.options import (
    SECTION,
    TensorRTRtxConfig,
    TensorRTRtxOptions,
    rtx_config,
)
from compactmtl.config.precision import Precision
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRTRtxBackend(EngineBackend):
    """TensorRT for RTX, whose builder needs no GPU."""

    name = "tensorrt-rtx"
    Options = TensorRTRtxOptions
    # The builder of no capability compiles the last one.
    float_ops: ClassVar[Mapping[Precision, frozenset[str]]] = {
        "bf16": EngineBackend.float_ops["bf16"] | {"ConvTranspose"}
    }
    packages = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
    # The wheels of the bindings hold tensorrt_rtx_bindings; the package tensorrt_rtx takes its names from there.
    library = Library(
        "TensorRT-RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), extra="tensorrt-rtx", floor=(1, 7)
    )

    device_install = "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"

    def wheel(self, target: Target) -> str:
        return " ".join(self.packages)

    def in_bundle(self, target: Target) -> str:
        """TensorRT's part with the names of this library."""
        source = Path(__file__).parents[1] / "tensorrt" / "in_bundle.py"
        text = source.read_text(encoding="utf-8").replace('target["tensorrt"]', f'target["{SECTION}"]')
        return text.replace("import tensorrt\n", "import tensorrt_rtx_bindings as tensorrt\n")

    def config(self, target: Target) -> TensorRTRtxConfig:
        return rtx_config(target)

    def job(self, target: Target, device: CudaDevice | None) -> Job:
        options = self.config(target)
        if device is not None and device.capability not in options.capabilities:
            raise ConfigError(
                f"{SECTION}.compute is {', '.join(options.capabilities)}, and this is {device.name} with"
                f" {device.capability}: the engine would not run here",
                f"add {device.capability} to {SECTION}.compute",
            )

        def configure(api: TensorRT, config: trt.IBuilderConfig) -> None:
            chosen = [_member(api, one) for one in options.capabilities]
            config.num_compute_capabilities = len(chosen)
            for index, member in enumerate(chosen):
                config.set_compute_capability(member, index)

        def check(layers: Sequence[NetworkLayer], model: str) -> None:
            for one in options.capabilities:
                _member(self.library.load(), one)
            if options.refit and device is None:
                raise ConfigError(
                    f"{SECTION}.refit: TensorRT-RTX builds an engine whose weights can be exchanged only on a GPU",
                    f"set {SECTION}.refit: false, or build on a machine with an NVIDIA GPU",
                )
            check_capabilities(layers, options.capabilities, model, SECTION)

        return Job(
            library=self.library,
            section=SECTION,
            options=options,
            precision=target.precision,
            batch=target.latency.batch,
            settings_sha256=self.settings_sha256(target),
            configure=configure,
            check=check,
            compute=options.capabilities,
            accept_unseen=True,  # its layers are fused beyond recognition; the parsed network tells their types
        )

    def availability(self, target: Target) -> Availability:
        found = super().availability(target)
        if found.available or self.library.failure():
            return found
        return Availability(
            False, found.reason, f"{found.hint}; `compactmtl export RUN --prepare` builds the engine here"
        )

    def build_here(self, model: Path, target: Target) -> Built:
        """Build on this machine, whether or not it has a GPU. Raises MissingDependencyError without the package."""
        if failure := self.library.failure():
            raise MissingDependencyError(
                f"backend {self.name} can't build here: {failure}", self.library.hint
            )
        return build_engine(model, self.job(target, None), None)

    def build_ahead(self, model: Path, target: Target) -> Ahead | None:
        """The engine for the target's compute capabilities; None where the package is missing."""
        if self.library.failure():
            return None
        built = self.build_here(model, target)
        facts = built.facts
        peak = "" if facts.build_peak_mib is None else f" with {facts.build_peak_mib:.0f} MiB of host memory"
        return Ahead(
            self._write(model, built),
            f"TensorRT-RTX {facts.tensorrt} engine for compute capability {', '.join(facts.compute)}:"
            f" {len(built.data) / 1e6:.2f} MB, built in {facts.build_seconds:.1f} s{peak};"
            f" {facts.parsed_types}",
        )


def _member(api: TensorRT, capability: str) -> trt.ComputeCapability:
    """A capability as the builder names it. Raises ConfigError with those that it knows."""
    name = f"SM{capability.replace('.', '')}"
    members = {key: value for key, value in api.ComputeCapability.__members__.items() if key.startswith("SM")}
    if name not in members:
        known = ", ".join(f"{key[2:-1]}.{key[-1]}" for key in members)
        raise ConfigError(
            f"{SECTION}.compute: TensorRT-RTX {api.__version__} builds for {known}, not for {capability}",
            "name the compute capability of the GPUs that will run the engine",
        )
    return members[name]
