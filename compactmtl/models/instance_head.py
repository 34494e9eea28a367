"""The head for instances: a feature pyramid down to a quarter of the image, then classes, centers and offsets.

Sources: arXiv:1901.02446 (Panoptic FPN, the pyramid summed at one scale) and arXiv:1911.10194 (Panoptic-DeepLab, the
three predictions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import ConfigError
from compactmtl.models.features import FeatureMap, stage_maps
from compactmtl.models.layers import conv_norm_relu

STRIDE = 4  # that of the task's output
CENTER_CHANCE = 0.01  # of a center at a cell, before training


class InstanceHead(nn.Module):
    """Maps of an encoder to (B, channels, ceil(H / 4), ceil(W / 4)): class logits, then center and offsets.

    Each map with a stride of 4 or more becomes `width` channels by a 1x1 convolution; from the coarsest on they are
    upsampled and added, each sum passing a 3x3 convolution. Classes on one side, center and offset on the other have
    `depth` convolutions and a 1x1 convolution of their own. `maps` describes the list that `forward` gets.
    """

    needs = "pyramid"

    def __init__(self, maps: Sequence[FeatureMap], channels: int, config: HeadConfig) -> None:
        super().__init__()
        self.read = pyramid(maps)
        width = config.width
        self.lateral = nn.ModuleList(conv_norm_relu(maps[index].channels, width, 1) for index in self.read)
        self.smooth = nn.ModuleList(conv_norm_relu(width, width) for _ in self.read[1:])
        widths = [width] * (config.depth + 1)
        self.classes = nn.Sequential(*(conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.places = nn.Sequential(*(conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.last_classes = nn.Conv2d(width, channels - 3, 1)
        self.last_places = nn.Conv2d(width, 3, 1)
        assert self.last_places.bias is not None
        nn.init.zeros_(self.last_places.bias)
        # Nearly every cell is no center: without this their losses would drown all others at first (1708.02002, 3.3).
        nn.init.constant_(self.last_places.bias[:1], math.log(CENTER_CHANCE / (1 - CENTER_CHANCE)))

    def forward(self, features: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Without `size` the output keeps the size of the finest map that is read."""
        coarsest, *finer = reversed(list(zip(self.read, self.lateral, strict=True)))
        x = coarsest[1](features[coarsest[0]])
        for (index, lateral), smooth in zip(finer, self.smooth, strict=True):
            fine = lateral(features[index])
            x = smooth(fine + _resized(x, (fine.shape[-2], fine.shape[-1])))
        if size is not None:
            x = _resized(x, (-(-size[0] // STRIDE), -(-size[1] // STRIDE)))
        classes = self.last_classes(self.dropout(self.classes(x)))
        return torch.cat([classes, self.last_places(self.places(x))], 1)


def pyramid(maps: Sequence[FeatureMap]) -> list[int]:
    """Positions of the maps to read, from the finest of stride 4 or more on. Raises ConfigError for a coarser one."""
    read = [index for index in stage_maps(maps) if maps[index].stride >= STRIDE]
    if not read or maps[read[0]].stride > STRIDE:
        finest = (
            f"its finest map has stride {maps[read[0]].stride}" if read else "it has none that is coarser"
        )
        raise ConfigError(
            f"an instances head needs an encoder with a map of stride {STRIDE}, but {finest}",
            "choose an encoder whose stages begin at a quarter of the image, such as a ResNet",
        )
    return read


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
