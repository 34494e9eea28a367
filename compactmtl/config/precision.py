"""How an exported graph is brought to a lower precision: which parts stay in float32, and how int8 is calibrated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.schema import Frozen, Share

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Count = Annotated[int, Field(ge=1)]


class HalfConfig(Frozen):
    """A 16-bit graph; inputs and outputs stay float32."""

    keep_ops: tuple[str, ...] = Field(
        (), description="ONNX operators that stay in float32, such as `Softmax`."
    )
    keep_nodes: tuple[str, ...] = Field((), description="Nodes that stay in float32, by name.")


class Fp16Config(HalfConfig):
    """float16, whose largest number is 65504: what comes near it on calibration images stays float32."""

    samples: Count = Field(16, description="Training images on which value ranges are measured.")
    headroom: Annotated[float, Field(ge=1)] = Field(
        4.0, description="A node stays in float32 if its largest value times this factor exceeds 65504."
    )


class Int8Config(Frozen):
    """Q/DQ pairs around what is quantized, with scales from calibration on training images."""

    method: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="How a range is derived from the calibration values."
    )
    percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        99.99, description="Percentile of the values that a range covers, for `method: percentile`."
    )
    samples: Count = Field(128, description="Training images for calibration, evenly spread over the split.")
    scheme: Literal["u8s8", "s8s8"] = Field(
        "u8s8", description="Types of activations and weights. VNNI multiplies `u8s8`; TensorRT needs `s8s8`."
    )
    symmetric: bool = Field(
        False, description="Use activation ranges that are symmetric about zero. TensorRT needs true."
    )
    layout: Literal["full", "inputs"] = Field(
        "full",
        description="Where Q/DQ pairs are inserted: `full` around every operator that has an int8 form, "
        "biases included; `inputs` only before matrix products, as TensorRT needs.",
    )
    reduce_range: bool | None = Field(
        None,
        description="Use 7-bit weights. x86 processors without VNNI add 8-bit products in 16 bits, which "
        "can overflow without a warning. null: true for targets that run on a CPU.",
    )
    per_channel: bool = Field(
        True, description="Use one scale per output channel of a weight. Otherwise one per weight."
    )
    exclude: tuple[str, ...] = Field((), description="Nodes that are never quantized, by name or operator.")
    max_float: Share = Field(
        0.5, description="Largest share of the layers that the search may leave in float."
    )
    search: Annotated[int, Field(ge=0)] = Field(
        8,
        description="Largest number of evaluations in the search for layers to leave in float. 0: no search.",
    )
