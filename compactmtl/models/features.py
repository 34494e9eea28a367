"""What an encoder gives: a vector or feature maps, and what of them a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# The last map alone; every map; every map with what enters the last part of its stage.
Needs = Literal["last", "pyramid", "blocks"]


@dataclass(frozen=True)
class FeatureMap:
    """One map (B, channels, ~H / stride, ~W / stride) of an encoder.

    `part` "before" is a map inside a stage, whose result follows at once as the stage's "map".
    """

    channels: int
    stride: int
    part: Literal["before", "map"] = "map"


def last_map(features: Tensor | Sequence[Tensor]) -> Tensor:
    """What most heads read of an encoder: its only output, or the last of several maps."""
    return features if isinstance(features, Tensor) else features[-1]


def stage_maps(maps: Sequence[FeatureMap]) -> list[int]:
    """Positions of the maps that stages end in, in the encoder's order."""
    return [index for index, one in enumerate(maps) if one.part == "map"]
