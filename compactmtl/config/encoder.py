"""The encoder: a network by name, and where its initial weights come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compactmtl.config.schema import Frozen, Scalar


class EncoderConfig(Frozen):
    """The shared trunk: any timm model by name, segnet, or a class of your own."""

    name: str = Field(
        "resnet18",
        description="Any timm model by name, `segnet`, or a class of your own as `package.module:Class`.",
    )
    pretrained: bool = Field(False, description="Download timm's pretrained weights by name.")
    weights: str | None = Field(
        None,
        description="Path of a local `.safetensors` or `.pth` file with encoder weights, or `package:NAME` for weights "
        "of an installed package: efficientnet-lite0, efficientnet-lite1, efficientnet-lite2 (extra `pretrained`).",
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        None, description="Largest stride of the encoder. Later stages are dilated to keep it."
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        description="Keyword arguments of `timm.create_model`. `out_index` selects the feature map (the "
        "last one by default). `segnet` has `width` and `unpool`; a class of your own has the arguments that it takes.",
    )
