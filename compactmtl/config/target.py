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
        description="Largest |difference| as a share of the output's range. null: 1e-4 for fp32, 1e-2 for "
        "fp16, 8e-2 for bf16; no gate for int8.",
    )
    tasks: dict[str, Positive] = Field(
        default_factory=dict, description="Tolerance of single tasks, by task name."
    )


class AccuracyConfig(Frozen):
    """How much of a metric may be lost, as a share of the reference value."""

    export_drop: Annotated[float, Field(ge=0)] = Field(
        1e-3,
        description="Largest loss of any metric from the torch model to the artifact, as a share of its "
        "value.",
    )
    compact_drop: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Largest loss of any metric from the dense baseline run to the artifact, as a share of "
        "its value. null: no gate.",
    )
    samples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of validation samples. null: the whole split."
    )


class LatencyConfig(Frozen):
    """How latency is measured, and its bounds."""

    batch: Annotated[int, Field(ge=1)] = Field(1, description="Batch size.")
    warmup: Annotated[int, Field(ge=0)] = Field(10, description="Rounds before the measurement.")
    repeats: Annotated[int, Field(ge=1)] = Field(
        100, description="Measured rounds. Each round runs every model once."
    )
    settle: Annotated[int, Field(ge=0)] = Field(
        3,
        description="Unmeasured runs of a model before each measured one, so that the caches hold its own "
        "weights.",
    )
    max_ms: Positive | None = Field(
        None, description="Gate: largest median latency in milliseconds. null: no gate."
    )
    min_speedup: Positive | None = Field(
        None,
        description="Gate: least speedup over the dense model, the median over rounds. For lower precisions"
        " the speedup over the dense model in float32 must reach it as well. null: no gate.",
    )
    not_slower: tuple[Literal["dense", "fp32"], ...] = Field(
        (),
        description="Gates: what the artifact must not be slower than. `dense` is the dense model in float32, "
        "where a baseline was given; `fp32` is the artifact's own float32 form. A gate fails where the whole "
        "10–90 % band of the ratio over rounds lies below 1, and warns where the band holds 1.",
    )


class OnnxConfig(Frozen):
    """The interchange file."""

    opset: Annotated[int, Field(ge=18)] = Field(18, description="ONNX opset. bf16 needs 22.")
    dynamic_batch: bool = Field(False, description="Leave the batch size free.")
    dynamic_size: bool = Field(False, description="Leave height and width free.")
    preprocess: bool = Field(
        False, description="Take uint8 images of shape (B, H, W, 3) and normalize them inside the model file."
    )
    postprocess: dict[str, Literal["argmax", "softmax", "sigmoid"]] = Field(
        default_factory=dict, description="Operator after the output of a task, by task name."
    )
    external_data: Literal["auto", "always", "never"] = Field(
        "auto", description="Store the weights in a separate file. `auto`: only if they exceed 2 GB."
    )


class Target(Frozen):
    """Where the model runs, and the bounds that it must meet."""

    model_config = ConfigDict(extra="allow")  # the backend's own keys, which it checks

    description: str = Field("", description="One line for `compactmtl targets list`.")
    backend: str = Field(description="Runtime that executes the model. `compactmtl doctor` lists them.")
    precision: Precision = Field("fp32", description="Precision in which the model must really run.")
    fp16: Fp16Config = Field(Fp16Config(), description="Conversion to float16, for `precision: fp16`.")
    bf16: HalfConfig = Field(HalfConfig(), description="Conversion to bfloat16, for `precision: bf16`.")
    int8: Int8Config = Field(Int8Config(), description="Quantization, for `precision: int8`.")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="CPU threads.")
    align: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Multiple of channels that runs best, for `surgery.align: auto`. null: 16 for fp32, 8 "
        "for fp16 and bf16, 4 for int8 (16 on tensor cores).",
    )
    onnx: OnnxConfig = Field(OnnxConfig(), description="The ONNX file.")
    parity: ParityConfig = Field(
        ParityConfig(), description="How close the outputs must be to those of the torch model."
    )
    accuracy: AccuracyConfig = Field(AccuracyConfig(), description="How much of a metric may be lost.")
    latency: LatencyConfig = Field(LatencyConfig(), description="How latency is measured, and its gates.")
    example: bool = Field(
        False,
        description="Mark a target as an example to copy and change. `--target all-available` skips it.",
    )
    max_megabytes: Positive | None = Field(
        None, description="Gate: largest size of the model file in MB. null: no gate."
    )

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
