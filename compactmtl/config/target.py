"""The deployment target: backend, precision, shapes, tolerances and budgets, typed and frozen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.config.tensorrt import TensorRTConfig


class ParityConfig(Frozen):
    """How close the artifact's outputs must be to the torch model's."""

    tolerance: Positive = Field(1e-4, description="largest |difference| as a share of the output's range")
    tasks: dict[str, Positive] = Field(default_factory=dict, description="tolerance of single tasks")


class AccuracyConfig(Frozen):
    """How much of a metric may be lost, as a share of the reference value."""

    export_drop: Annotated[float, Field(ge=0)] = Field(1e-3, description="artifact against the torch model")
    compact_drop: Annotated[float, Field(ge=0)] | None = Field(
        None, description="artifact against the dense baseline run, where one is given; none: not a gate"
    )
    samples: Annotated[int, Field(ge=1)] | None = Field(None, description="none: the whole val split")


class LatencyConfig(Frozen):
    """How latency is measured and what it may be."""

    batch: Annotated[int, Field(ge=1)] = 1
    warmup: Annotated[int, Field(ge=0)] = 10
    repeats: Annotated[int, Field(ge=1)] = Field(100, description="interleaved runs of each model")
    max_ms: Positive | None = Field(None, description="gate on the median; none: not a gate")
    min_speedup: Positive | None = Field(None, description="gate on dense/compact; none: not a gate")


class OnnxConfig(Frozen):
    """The interchange file."""

    opset: Annotated[int, Field(ge=18)] = 18
    dynamic_batch: bool = False


class Target(Frozen):
    """Where the model will run and with what tolerance."""

    description: str = Field("", description="one line for `targets list`")
    backend: Literal[
        "onnxruntime",
        "tensorrt",
        "torch",
    ]
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime execution provider")
    precision: Literal["fp32"] = "fp32"
    threads: Annotated[int, Field(ge=1)] = 1
    onnx: OnnxConfig = OnnxConfig()
    tensorrt: TensorRTConfig = TensorRTConfig()
    parity: ParityConfig = ParityConfig()
    accuracy: AccuracyConfig = AccuracyConfig()
    latency: LatencyConfig = LatencyConfig()
    max_megabytes: Positive | None = Field(None, description="gate on the model file's size")
