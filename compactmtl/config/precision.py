"""How an exported graph is brought to a lower precision: which parts stay in float32, and how int8 is calibrated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.schema import Frozen, Share

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Count = Annotated[int, Field(ge=1)]


class HalfConfig(Frozen):
    """A 16-bit graph; inputs and outputs stay float32."""

    keep_ops: tuple[str, ...] = Field((), description="ONNX operators that stay float32, such as Softmax")
    keep_nodes: tuple[str, ...] = Field((), description="nodes that stay float32, by name")


class Fp16Config(HalfConfig):
    """float16, whose largest number is 65504: what comes near it on calibration images stays float32."""

    samples: Count = Field(16, description="training images whose ranges are looked at")
    headroom: Annotated[float, Field(ge=1)] = Field(
        4.0, description="keep a node in float32 where its largest value times this passes 65504"
    )


class Int8Config(Frozen):
    """Q/DQ pairs around what is quantized, with scales from calibration on training images."""

    method: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how a range is read off the values seen"
    )
    percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        99.99, description="of the values that a range covers; method percentile"
    )
    samples: Count = Field(128, description="training images to calibrate on, evenly spread over the split")
    scheme: Literal["u8s8", "s8s8"] = Field(
        "u8s8", description="activations and weights; u8s8 is what VNNI multiplies, TensorRT wants s8s8"
    )
    symmetric: bool = Field(False, description="activation ranges around zero; TensorRT wants true")
    layout: Literal["full", "inputs"] = Field(
        "full",
        description="pairs around every operator with an int8 form, biases included, or, as TensorRT wants, before "
        "matrix products alone",
    )
    reduce_range: bool | None = Field(
        None,
        description="weights in 7 bits: x86 without VNNI adds products of 8 bits in 16, which overflow unseen; none: "
        "true for a target that runs on a CPU",
    )
    per_channel: bool = Field(True, description="one scale an output channel of a weight, else one a weight")
    exclude: tuple[str, ...] = Field((), description="nodes, by name or operator, that are never quantized")
    max_float: Share = Field(
        0.5, description="largest share of the layers that the search may leave in float"
    )
    search: Annotated[int, Field(ge=0)] = Field(
        8, description="most evaluations in the search for layers to leave in float; 0: no search"
    )
