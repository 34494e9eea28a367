"""SegNet: the VGG-16 encoder and its mirror with unpooling, as one full-resolution trunk. Source: arXiv:1511.00561.

Widths and the order of a decoder's convolutions follow the SegNet of the multi-task attention paper
(arXiv:1803.10704): a stage of the decoder narrows in its first convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from compactmtl.config.recipe import Frozen
from compactmtl.models.features import FeatureMap
from compactmtl.models.layers import conv_norm_relu
from compactmtl.models.unpool import IndexPool, IndexUnpool, MaskPool, MaskUnpool

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG-16's stages
WIDENING = (1, 2, 4, 8, 8)
STEM = "down.0.0.0.weight"  # of the convolution that reads the image


class SegNetOptions(Frozen):
    """Options of the encoder `segnet`."""

    width: Annotated[int, Field(ge=1)] = Field(
        64, description="channels of the first stage; 64 in the papers"
    )
    unpool: Literal["exportable", "indices"] = Field(
        "exportable",
        description="how maxima are put back: by masks, which every exporter knows, or by torch's indices; "
        "the same function and the same weights",
    )


class SegNet(nn.Module):
    """Image (B, channels, H, W) to a list of maps, the last one (B, width, H, W).

    With `blocks` the list holds two maps for each of the ten stages: what its first convolution gives (of a decoder
    stage: what is unpooled) and what the stage gives; else it holds the last map alone. H and W need at least 32 pixels.
    """

    expansion = 1

    def __init__(
        self, options: SegNetOptions | None = None, *, blocks: bool = False, channels: int = 3
    ) -> None:
        super().__init__()
        options = options or SegNetOptions()
        self.blocks = blocks
        self.widths = tuple(options.width * factor for factor in WIDENING)
        by_mask = options.unpool == "exportable"
        self.pool = MaskPool() if by_mask else IndexPool()
        self.unpool = MaskUnpool() if by_mask else IndexUnpool()
        inputs = (channels, *self.widths)
        self.down = nn.ModuleList(
            _stage(narrow, wide, count)
            for (narrow, wide), count in zip(pairwise(inputs), CONVOLUTIONS, strict=True)
        )
        # From the deepest stage: each narrows to the width of the stage whose maxima are put back next.
        outputs = (self.widths[0], *self.widths[:-1])
        self.up = nn.ModuleList(
            _stage(wide, narrow, count)
            for wide, narrow, count in reversed(list(zip(self.widths, outputs, CONVOLUTIONS, strict=True)))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def maps(self) -> tuple[FeatureMap, ...]:
        """What `forward` gives, in its order."""
        if not self.blocks:
            return (FeatureMap(self.widths[0], 1),)
        maps: list[FeatureMap] = []
        for level, width in enumerate(self.widths):
            maps += [FeatureMap(width, 2**level, "before"), FeatureMap(width, 2**level)]
        for level in reversed(range(len(self.widths))):
            narrowed = self.widths[max(level - 1, 0)]
            maps += [FeatureMap(self.widths[level], 2**level, "before"), FeatureMap(narrowed, 2**level)]
        return tuple(maps)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        kept = []
        x = image
        for stage in self.down:
            assert isinstance(stage, nn.Sequential)
            before = stage[0](x)
            after = stage[1:](before)
            maps += [before, after]
            x, places = self.pool(after)
            kept.append((places, (after.shape[-2], after.shape[-1])))
        for stage, (places, size) in zip(self.up, reversed(kept), strict=True):
            before = self.unpool(x, places, size)
            x = stage(before)
            maps += [before, x]
        return maps if self.blocks else [x]


def _stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    widths = [inputs] + [outputs] * count
    # The convolutions keep their bias, as VGG's weights have one.
    return nn.Sequential(*(conv_norm_relu(*pair, bias=True) for pair in pairwise(widths)))


def from_vgg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's vgg16_bn under the names of SegNet's first half; those of its classifier are left out."""
    names: dict[str, str] = {}
    position = 0
    for level, count in enumerate(CONVOLUTIONS):
        for index in range(count):
            names[f"features.{position}"] = f"down.{level}.{index}.0"
            names[f"features.{position + 1}"] = f"down.{level}.{index}.1"
            position += 3  # convolution, norm, ReLU
        position += 1  # the pooling
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in names:
            weights[f"{names[layer]}.{leaf}"] = value
        elif key.startswith("features."):
            weights[key] = value  # not VGG-16's: the check of names says so
    return weights


SMALLEST = math.prod([2] * len(CONVOLUTIONS))  # pixels a side that survive all poolings
