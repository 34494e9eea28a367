"""Random joint transforms of training images, as a recipe states them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen, Share


class AugmentConfig(Frozen):
    """Random joint transforms of an image and all its targets, training split only."""

    flip: bool = Field(
        False, description="Mirror the image and its targets left to right with probability 1/2."
    )
    zoom: tuple[float, float] = Field(
        (1.0, 1.0),
        description="Range of a random scale, followed by a crop to the old size. Depth targets are divided"
        " by the scale.",
    )
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="Largest angle of a random rotation about the center, in degrees."
    )
    shift: Annotated[int, Field(ge=0)] = Field(
        0, description="Pad by this many pixels and crop back at a random position."
    )
    color: Share = Field(
        0.0, description="Strength of random changes of brightness, contrast and saturation."
    )

    @model_validator(mode="after")
    def _zoom_range(self) -> AugmentConfig:
        low, high = self.zoom
        if not 1.0 <= low <= high:
            raise ValueError(f"zoom needs 1 <= low <= high, found [{low}, {high}]")
        return self

    @property
    def moves(self) -> bool:
        """Whether pixels change their position: any key except `color` differs from its default."""
        return self.model_copy(update={"color": 0.0}) != AugmentConfig()
