"""How TensorRT for RTX builds and runs an engine. It has no timing cache, and no engines for later versions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from compactmtl.backends.base import BackendOptions, read_options
from compactmtl.backends.tensorrt.options import EngineConfig
from compactmtl.config.target import Target

SECTION = "tensorrt_rtx"
# Ampere and later. Turing (7.5) has no bfloat16 and multiplies no float32 matrices, so a target has to name it.
CAPABILITIES = (8.0, 8.6, 8.9, 12.0)
Capability = Annotated[float, Field(ge=1, lt=100, multiple_of=0.1)]


class TensorRTRtxConfig(EngineConfig):
    """Building and running of a TensorRT for RTX engine; precision is not here, it is in the graph."""

    compute: Annotated[tuple[Capability, ...], Field(min_length=1)] = Field(
        CAPABILITIES,
        description="Compute capabilities of the GPUs that the engine is built for, such as 8.9. One engine serves them "
        "all.",
    )

    @field_validator("compute")
    @classmethod
    def _different(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a compute capability is listed twice: {value}")
        return tuple(sorted(value))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """As CUDA writes them: 8.9."""
        return tuple(f"{one:.1f}" for one in self.compute)


class TensorRTRtxOptions(BackendOptions):
    """The section of a target that this backend reads."""

    tensorrt_rtx: TensorRTRtxConfig = Field(
        TensorRTRtxConfig(),
        description="Building and running of TensorRT for RTX engines, for `backend: tensorrt-rtx`.",
    )


def rtx_config(target: Target) -> TensorRTRtxConfig:
    """The section of a target. Raises ConfigError naming the key."""
    return read_options(TensorRTRtxOptions, target).tensorrt_rtx
