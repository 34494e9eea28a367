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

    min: tuple[Size, ...]
    opt: tuple[Size, ...]
    max: tuple[Size, ...]

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"min, opt and max differ in rank: {self.min}, {self.opt}, {self.max}")
        if any(not low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"expected min <= opt <= max, found {self.min}, {self.opt}, {self.max}")
        return self


class TensorRTConfig(Frozen):
    """Building and running of a TensorRT engine; precision is not here, it is in the graph."""

    optimization_level: Annotated[int, Field(ge=0, le=5)] = Field(
        3, description="how long the builder looks for kernels; 5 is the longest"
    )
    workspace_mib: Size | None = Field(
        None, description="most device memory a layer may use for scratch; none: all there is"
    )
    timing_cache: str | None = Field(
        AUTO, description="file of measured kernel times; auto: one a version and GPU in the user's cache"
    )
    max_batch: Size = Field(8, description="largest batch, where the model's batch is free")
    shapes: dict[str, ShapeRange] = Field(
        default_factory=dict, description="of inputs with free dimensions; by default the batch alone is free"
    )
    tf32: bool = Field(False, description="let float32 products be rounded to 10 bits of fraction")
    hardware: Literal["exact", "same_compute_capability", "ampere_plus"] = Field(
        "exact", description="which GPUs the engine may run on beside the one that built it"
    )
    version_compatible: bool = Field(
        False, description="let later versions of the same major run the engine, through their lean runtime"
    )
    lean_runtime: str | None = Field(
        None, description="file of the lean runtime that runs an engine of an earlier version"
    )
    refit: bool = Field(False, description="weights may be exchanged later; costs speed")
    aux_streams: Annotated[int, Field(ge=0)] | None = Field(
        None, description="streams beside the main one; none: TensorRT decides"
    )
    cuda_graph: bool = Field(True, description="record one run and replay it, which saves launches")
    unseen_types: Literal["refuse", "accept"] = Field(
        "refuse", description="what to do with an engine whose inspector shows no layer of the precision"
    )

    @property
    def portable(self) -> TensorRTConfig:
        """Without the paths of a machine: a library and a cache of kernel times are the user's to name."""
        cache = None if self.timing_cache is None else AUTO
        return self.model_copy(update={"lean_runtime": None, "timing_cache": cache})


class TensorRTOptions(BackendOptions):
    """The section of a target that this backend reads."""

    tensorrt: TensorRTConfig = TensorRTConfig()

    @property
    def portable(self) -> Self:
        return self.model_copy(update={SECTION: self.tensorrt.portable})


def tensorrt_config(target: Target) -> TensorRTConfig:
    """The section of a target. Raises ConfigError naming the key."""
    return read_options(TensorRTOptions, target).tensorrt
