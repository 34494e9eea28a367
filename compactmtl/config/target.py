"""The deployment target: backend, precision, shapes, tolerances and budgets, typed and frozen."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.precision import Fp16Config, HalfConfig, Int8Config, Precision
from compactmtl.config.schema import Frozen, Positive
from compactmtl.config.tensorrt import TensorRTConfig

# Of an output's range. float32 kernels of two libraries differ by about 1e-6; float16 has 11 bits of precision,
# bfloat16 8. Int8 is judged by the tasks' metrics: its values are shown and not a gate, unless a target says so.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": math.inf}
# The multiples of channels that kernels are written for: 16 floats fill a vector of a CPU, int8 dot products take 4
# values at a time, tensor cores 8 half or 16 int8 values.
STEPS: dict[Precision, int] = {"fp32": 16, "fp16": 8, "bf16": 8, "int8": 4}
TENSOR_CORES_INT8 = 16
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

    description: str = Field("", description="one line for `targets list`")
    backend: Literal[
        "onnxruntime",
        "openvino",
        "tensorrt",
        "torch",
    ]
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime execution provider")
    device: str = Field("CPU", description="OpenVINO device, such as CPU, GPU or NPU")
    precision: Precision = Field("fp32", description="that the model must really run in")
    fp16: Fp16Config = Fp16Config()
    bf16: HalfConfig = HalfConfig()
    int8: Int8Config = Int8Config()
    threads: Annotated[int, Field(ge=1)] = 1
    align: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="multiple of channels that runs best, for surgery.align: auto; none: 16 for fp32, 8 for fp16 and bf16, "
        "4 for int8 (16 with tensorrt)",
    )
    onnx: OnnxConfig = OnnxConfig()
    tensorrt: TensorRTConfig = TensorRTConfig()
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
    def on_cpu(self) -> bool:
        """Whether the model runs on a CPU."""
        if self.backend == "onnxruntime":
            return self.provider == "CPUExecutionProvider"
        return self.backend == "torch" or (self.backend == "openvino" and self.device == "CPU")

    @property
    def portable(self) -> Target:
        """The target without paths of the machine that it was used on, as a bundle carries it."""
        return self.model_copy(update={"tensorrt": self.tensorrt.portable})

    @property
    def channel_step(self) -> int:
        """The multiple of channels that runs best there."""
        if self.align is not None:
            return self.align
        tensor_cores = self.backend == "tensorrt" or self.provider.startswith("Tensorrt")
        return TENSOR_CORES_INT8 if self.precision == "int8" and tensor_cores else STEPS[self.precision]

    def tolerance(self, task: str) -> float:
        """Of the parity of a task's output: its own, the target's, or its precision's; infinite: not a gate."""
        default = TOLERANCES[self.precision] if self.parity.tolerance is None else self.parity.tolerance
        return self.parity.tasks.get(task, default)
