"""The deployment target: backend, precision, shapes, tolerances and budgets, typed and frozen.

These are the keys that every target has. A backend may have keys of its own beside them (`Target.own`), which its entry
declares and checks; `compactmtl.backends.targets` loads a target with both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from compactmtl.config.precision import Fp16Config, HalfConfig, Int8Config, Precision
from compactmtl.config.schema import Frozen, Positive

# Of an output's range. float32 kernels of two libraries differ by about 1e-6; float16 has 11 bits of precision,
# bfloat16 8. Int8 is judged by the tasks' metrics: its values are shown and not a gate, unless a target says so.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": math.inf}
BF16_OPSET = 22  # the first in which convolution takes bfloat16


class ParityConfig(Frozen):
    """How close the artifact's outputs must be to the torch model's."""

    tolerance: Positive | None = Field(
        None,
        description="largest |difference| as a share of the output's range; none: 1e-4 for fp32, 1e-2 for fp16, 8e-2 "
        "for bf16, and for int8 not a gate",
    )
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
    settle: Annotated[int, Field(ge=0)] = Field(
        3,
        description="runs of a model before each clocked one, so that caches hold its weights and not another's",
    )
    max_ms: Positive | None = Field(None, description="gate on the median; none: not a gate")
    min_speedup: Positive | None = Field(
        None,
        description="gate on how many times as fast as the dense model, the median over rounds; of lower precisions also as the dense model in float32; none: not a gate",
    )


class OnnxConfig(Frozen):
    """The interchange file."""

    opset: Annotated[int, Field(ge=18)] = Field(18, description="bf16 needs 22")
    dynamic_batch: bool = Field(False, description="leave the batch size free")
    dynamic_size: bool = Field(False, description="leave height and width free")
    preprocess: bool = Field(
        False, description="take uint8 images (B, H, W, 3) and normalize them in the model file"
    )
    postprocess: dict[str, Literal["argmax", "softmax", "sigmoid"]] = Field(
        default_factory=dict, description="what to put behind the output of a task"
    )
    external_data: Literal["auto", "always", "never"] = Field(
        "auto", description="weights in a file of their own; auto: where they pass 2 GB"
    )


class Target(Frozen):
    """Where the model will run and with what tolerance."""

    model_config = ConfigDict(extra="allow")  # the backend's own keys, which it checks

    description: str = Field("", description="one line for `targets list`")
    backend: str = Field(description="what runs the model; `compactmtl doctor` lists them")
    precision: Precision = Field("fp32", description="that the model must really run in")
    fp16: Fp16Config = Fp16Config()
    bf16: HalfConfig = HalfConfig()
    int8: Int8Config = Int8Config()
    threads: Annotated[int, Field(ge=1)] = 1
    align: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="multiple of channels that runs best, for surgery.align: auto; none: 16 for fp32, 8 for fp16 and bf16, "
        "4 for int8 (16 on tensor cores)",
    )
    onnx: OnnxConfig = OnnxConfig()
    parity: ParityConfig = ParityConfig()
    accuracy: AccuracyConfig = AccuracyConfig()
    latency: LatencyConfig = LatencyConfig()
    example: bool = Field(False, description="to be copied and changed: `all-available` leaves it out")
    max_megabytes: Positive | None = Field(None, description="gate on the model file's size")

    @model_validator(mode="after")
    def _opset_of_precision(self) -> Target:
        if self.precision == "bf16" and self.onnx.opset < BF16_OPSET:
            raise ValueError(f"precision bf16 needs onnx.opset >= {BF16_OPSET}, found {self.onnx.opset}")
        return self

    @property
    def own(self) -> Mapping[str, Any]:
        """The keys that are the backend's own, as they were given."""
        return self.model_extra or {}

    def with_own(self, values: Mapping[str, Any]) -> Target:
        """The target with `values` in place of the backend's own keys."""
        general = {key: getattr(self, key) for key in Target.model_fields}
        return Target.model_validate({**general, **values})

    def tolerance(self, task: str) -> float:
        """Of the parity of a task's output: its own, the target's, or its precision's; infinite: not a gate."""
        default = TOLERANCES[self.precision] if self.parity.tolerance is None else self.parity.tolerance
        return self.parity.tasks.get(task, default)
