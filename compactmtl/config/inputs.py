"""What a network is given where that is more than one picture: its inputs by name (`data.inputs`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Positive

IMAGE = "image"  # the one input of a recipe that names none
# Mean and standard deviation of each channel where a recipe gives none: ImageNet's of three; of others its average.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
AVERAGE = {"mean": 0.449, "std": 0.226}


class InputConfig(Frozen):
    """One input of the network."""

    kind: Literal["picture", "vector"] = Field(
        "picture",
        description="`picture`: it has `data.size`, is brought to it as `data.resize` says, and moves with the other pictures "
        "and the targets in augmentation. `vector`: numbers of the whole sample, such as a camera's intrinsics, which nothing "
        "but `mean` and `std` changes.",
    )
    channels: Annotated[int, Field(ge=1)] = Field(
        3,
        description="Channels of a picture: 1 gray, 3 RGB, 4 RGBA, any other number bands. Of a vector how many numbers it "
        "has.",
    )
    range: tuple[float, float] | None = Field(
        None,
        description="Values of a picture's file that become 0 and 255, of files with more than 8 bits a value; what lies "
        "beyond is clipped. null: 0 and 65535 for 16 bits, and other numbers are refused.",
    )
    mean: tuple[float, ...] = Field(
        (),
        description="Subtracted, one for each channel: of a picture from values in [0, 1], of a vector from its numbers. By "
        "default a picture's is ImageNet's, of other than 3 channels its average, 0.449; a vector's is 0.",
    )
    std: tuple[Positive, ...] = Field(
        (),
        description="Divisor after `mean` is subtracted, one for each channel. By default a picture's is ImageNet's, of other "
        "than 3 channels its average, 0.226; a vector's is 1.",
    )

    color: bool | None = Field(
        None,
        description="Whether `data.augment.color` changes it. null: where it is a picture of 3 channels.",
    )

    @property
    def colored(self) -> bool:
        """Whether random changes of color are of it, too."""
        return self.is_picture and self.channels == 3 if self.color is None else self.color

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture; else a vector."""
        return self.kind == "picture"

    @model_validator(mode="after")
    def _channels(self) -> InputConfig:
        if self.range is not None and not self.is_picture:
            raise ValueError("range is of a picture's file; a vector is given as it is")
        if self.color and not self.is_picture:
            raise ValueError("color is of a picture; a vector has none")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range needs low < high, found {list(self.range)}")
        for key, plain in (("mean", 0.0), ("std", 1.0)):
            values = getattr(self, key)
            if not values:
                usual = _IMAGENET[key] if self.channels == 3 else (AVERAGE[key],) * self.channels
                values = usual if self.is_picture else (plain,) * self.channels
                # The recipe is kept with the values that it is trained with.
                object.__setattr__(self, key, values)
            if len(values) != self.channels:
                raise ValueError(
                    f"{key} needs one value for each of the {self.channels} channels, found {len(values)}"
                )
        return self


# What `data` says of one picture, where a recipe names no inputs.
OF_ONE: Mapping[str, object] = {"channels": 3, "range": None, **_IMAGENET}


def check_inputs(inputs: Mapping[str, InputConfig], of_one: Mapping[str, object], *, several: bool) -> None:
    """Raise ValueError where they cannot be a network's inputs.

    `of_one` is what the recipe says under the keys of `OF_ONE`, `several` whether it draws from several data sets.
    """
    if several:
        raise ValueError(
            "inputs: several data sets (data.sources) give one picture each; leave one of the two out"
        )
    for key, value in of_one.items():
        if value != OF_ONE[key]:
            raise ValueError(
                f"{key} is of a recipe with one picture; give it in inputs.{next(iter(inputs))}.{key}"
            )
    if wrong := [name for name in inputs if not name.isidentifier() or name.startswith("_")]:
        raise ValueError(
            f"inputs: {wrong[0]!r} cannot be the name of an argument of forward; use letters, digits and _"
        )
    if not any(one.is_picture for one in inputs.values()):
        raise ValueError(
            "inputs names no picture; one input at least is of kind picture, whose size the targets' maps have"
        )
