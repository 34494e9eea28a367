"""How TensorRT builds and runs an engine: everything that changes the engine is a key of the target's own section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compactmtl.backends.base import BackendOptions, read_options
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target

Size = Annotated[int, Field(ge=1)]
AUTO = "auto"
SECTION = "tensorrt"


class ShapeRange(Frozen):
    """The shapes that one input may take, and the one that kernels are chosen for."""

    min: tuple[Size, ...] = Field(description="Smallest shape.")
    opt: tuple[Size, ...] = Field(description="Shape for which kernels are chosen.")
    max: tuple[Size, ...] = Field(description="Largest shape.")

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"min, opt and max differ in rank: {self.min}, {self.opt}, {self.max}")
        if any(not low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"expected min <= opt <= max, found {self.min}, {self.opt}, {self.max}")
        return self


class EngineConfig(Frozen):
    """Building and running of an engine, by either package; precision is not here, it is in the graph."""

    optimization_level: Annotated[int, Field(ge=0, le=5)] = Field(
        3, description="How long the builder searches for kernels. 5 is the longest."
    )
    workspace_mib: Size | None = Field(
        None, description="Largest scratch memory of a layer in MiB of device memory. null: no limit."
    )
    max_batch: Size = Field(8, description="Largest batch size, where the model's batch is free.")
    shapes: dict[str, ShapeRange] = Field(
        default_factory=dict,
        description="Shape range of each input with free dimensions, by input name. By default only the "
        "batch is free.",
    )
    tf32: bool = Field(False, description="Allow TF32, which rounds float32 products to 10 bits of mantissa.")
    refit: bool = Field(False, description="Allow the weights to be exchanged later. This costs speed.")
    aux_streams: Annotated[int, Field(ge=0)] | None = Field(
        None, description="CUDA streams in addition to the main one. null: TensorRT decides."
    )
    cuda_graph: bool = Field(
        True, description="Record one run as a CUDA graph and replay it, which saves kernel launches."
    )


class TensorRTConfig(EngineConfig):
    """Building and running of a TensorRT engine; precision is not here, it is in the graph."""

    timing_cache: str | None = Field(
        AUTO,
        description="File of measured kernel times. `auto`: one per version and GPU in the user's cache. "
        "null: none.",
    )
    hardware: Literal["exact", "same_compute_capability", "ampere_plus"] = Field(
        "exact", description="GPUs on which the engine may run in addition to the one that built it."
    )
    version_compatible: bool = Field(
        False,
        description="Let later versions of the same major version run the engine, through its lean runtime.",
    )
    lean_runtime: str | None = Field(
        None, description="File of the lean runtime that runs an engine of an earlier version. null: none."
    )
    unseen_types: Literal["refuse", "accept"] = Field(
        "refuse",
        description="What to do with an engine whose inspector shows no layer in the requested precision.",
    )

    @property
    def portable(self) -> TensorRTConfig:
        """Without the paths of a machine: a library and a cache of kernel times are the user's to name."""
        cache = None if self.timing_cache is None else AUTO
        return self.model_copy(update={"lean_runtime": None, "timing_cache": cache})


class TensorRTOptions(BackendOptions):
    """The section of a target that this backend reads."""

    tensorrt: TensorRTConfig = Field(
        TensorRTConfig(), description="Building and running of TensorRT engines, for `backend: tensorrt`."
    )

    @property
    def portable(self) -> Self:
        return self.model_copy(update={SECTION: self.tensorrt.portable})


def tensorrt_config(target: Target) -> TensorRTConfig:
    """The section of a target. Raises ConfigError naming the key."""
    return read_options(TensorRTOptions, target).tensorrt
