"""The network of a recipe: an encoder and heads by name, or a network of the user's own that a function builds whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from compactmtl.config.encoder import EncoderConfig
from compactmtl.config.registry import CLASS_PATTERN, one_of_names, some_names_schema
from compactmtl.config.schema import Frozen, Scalar, Share
from compactmtl.config.trust import is_class_name

HEAD_KINDS = ("linear", "mlp", "fcn", "deeplabv3", "deeplabv3plus", "mtan", "instances")
HeadKind = Annotated[
    str, one_of_names(HEAD_KINDS, own_class=True), some_names_schema(HEAD_KINDS, own_class=True)
]


def _names_a_function(name: str) -> str:
    if not is_class_name(name):
        raise PydanticCustomError("factory", "a function or class as package.module:name")
    return name


Factory = Annotated[
    str, AfterValidator(_names_a_function), WithJsonSchema({"type": "string", "pattern": CLASS_PATTERN})
]


class HeadConfig(Frozen):
    """The part of the network that belongs to one task."""

    kind: HeadKind = Field(
        "linear",
        description="Architecture of the head. `linear` and `mlp` predict one value or vector per image, "
        "the others maps. Or a class of your own as `package.module:Class`.",
    )
    width: Annotated[int, Field(ge=1)] = Field(
        64, description="Hidden channels or features. The DeepLab papers use 256."
    )
    depth: Annotated[int, Field(ge=0)] = Field(1, description="Hidden layers before the output layer.")
    dropout: Share = Field(0.0, description="Dropout probability before the output layer.")
    rates: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        description="Dilation rates of DeepLab's pyramid. By default 6, 12 and 18 at an output stride of "
        "16, scaled in proportion at others.",
    )
    predictor: Literal["fcn", "deeplabv3"] = Field(
        "fcn", description="Layers that follow the attention of an `mtan` head."
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of a head class of your own."
    )

    @model_validator(mode="after")
    def _options_of_own(self) -> HeadConfig:
        if self.options and not is_class_name(self.kind):
            raise ValueError(f"options are for a head class of your own; a {self.kind} head has none")
        return self


class ModelConfig(Frozen):
    """One encoder, with heads that belong to the tasks; or a whole network of your own."""

    encoder: EncoderConfig = Field(EncoderConfig(), description="The shared encoder.")
    factory: Factory | None = Field(
        None,
        description="Function or class of your own as `package.module:name` that returns the whole network, in place of "
        "encoder and heads. Its forward takes the images and gives a mapping of tasks to outputs.",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Keyword arguments of `factory`."
    )
    outputs: tuple[str, ...] = Field(
        (),
        description="Names of what the forward of `factory`'s network gives, in order, where it gives a list or a tuple. "
        "Outputs that are named here and are no tasks are left aside.",
    )
    encoder_path: str | None = Field(
        None,
        description="Submodule of `factory`'s network that is the shared encoder, such as `backbone`. null: `encoder`, "
        "where the network has one.",
    )
    head_paths: dict[str, str] = Field(
        default_factory=dict,
        description="Submodule of `factory`'s network that is a task's head, by task, such as `decoder.depth`. By default "
        "`heads.TASK`, where the network has one.",
    )
    weights: str | None = Field(
        None,
        description="Path of a `.safetensors` or `.pth` file with weights that the whole network starts from, such as a "
        "checkpoint of a run.",
    )

    @model_validator(mode="after")
    def _one_network(self) -> ModelConfig:
        if self.factory is None:
            for key in ("options", "outputs", "encoder_path", "head_paths"):
                if getattr(self, key):
                    raise ValueError(f"{key} belongs to model.factory, which is not given")
        elif self.encoder != EncoderConfig():
            raise ValueError(
                "encoder and model.factory each build a network; leave one out (encoder: {} drops an inherited one)"
            )
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("outputs names an output twice")
        return self
