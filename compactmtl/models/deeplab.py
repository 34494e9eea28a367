"""DeepLabV3 and V3+ heads: atrous spatial pyramid pooling. Sources: arXiv:1706.05587, arXiv:1802.02611."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import ConfigError
from compactmtl.models.features import FeatureMap, stage_maps
from compactmtl.models.layers import conv_norm_relu

RATES = (6, 12, 18)  # at an output stride of 16
LOW_STRIDE = 4  # of the finer map that V3+ reads
LOW_CHANNELS = 48


def dilations(stride: int, config: HeadConfig) -> tuple[int, ...]:
    """The head's dilations: the recipe's, else the paper's at this output stride (12, 24, 36 at a stride of 8)."""
    return config.rates or tuple(max(1, rate * 16 // stride) for rate in RATES)


class ASPP(nn.Module):
    """A map (B, C, h, w) to (B, width, h, w): convolutions of several dilations and the image's mean, side by side."""

    def __init__(self, in_channels: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_norm_relu(in_channels, width, 1)]
            + [conv_norm_relu(in_channels, width, dilation=rate) for rate in rates]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, width, 1, bias=False))
        self.pool_norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.project = conv_norm_relu((len(rates) + 2) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Spread out before the norm: the same statistics, and a batch of one image can be trained on.
        mean = self.pool_norm(self.pool(x).expand(-1, -1, *x.shape[-2:]))
        return self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1))  # type: ignore[no-any-return]


class DeepLabV3Head(nn.Module):
    """A map (B, C, h, w) to (B, channels, H, W): ASPP, `depth` 3x3 convolutions, dropout, one 1x1 convolution,
    bilinear upsampling to `size` = (H, W), then `output`. `stride` is that of the map, for the dilations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        config: HeadConfig,
        output: nn.Module | None = None,
        *,
        stride: int = 16,
    ) -> None:
        super().__init__()
        widths = [config.width] * (config.depth + 1)
        self.aspp = ASPP(in_channels, config.width, dilations(stride, config))
        self.hidden = nn.Sequential(*(conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.last = nn.Conv2d(config.width, channels, 1)
        self.output = nn.Identity() if output is None else output

    def forward(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Without `size` the output keeps the map's own size."""
        x = self.last(self.dropout(self.hidden(self.aspp(features))))
        return self.output(_resized(x, size))  # type: ignore[no-any-return]


class DeepLabV3PlusHead(nn.Module):
    """Maps of an encoder to (B, channels, H, W): as DeepLabV3, with the result of ASPP upsampled to a map of stride 4
    and refined together with it.

    `maps` describes the list that `forward` gets, of which the last map and one of stride 4 (where there is none,
    the coarsest finer one) are read.
    """

    needs = "pyramid"

    def __init__(
        self,
        maps: Sequence[FeatureMap],
        channels: int,
        config: HeadConfig,
        output: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.low = low_level(maps)
        fine, last = maps[self.low], maps[-1]
        widths = [config.width + LOW_CHANNELS] + [config.width] * config.depth
        self.aspp = ASPP(last.channels, config.width, dilations(last.stride, config))
        self.reduce = conv_norm_relu(fine.channels, LOW_CHANNELS, 1)
        self.hidden = nn.Sequential(*(conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.last = nn.Conv2d(widths[-1], channels, 1)
        self.output = nn.Identity() if output is None else output

    def forward(self, features: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Without `size` the output keeps the size of the finer map."""
        fine = self.reduce(features[self.low])
        coarse = _resized(self.aspp(features[-1]), (fine.shape[-2], fine.shape[-1]))
        x = self.last(self.dropout(self.hidden(torch.cat([coarse, fine], 1))))
        return self.output(_resized(x, size))  # type: ignore[no-any-return]


def low_level(maps: Sequence[FeatureMap]) -> int:
    """The position of the finer map that V3+ reads. Raises ConfigError where the last map is the finest."""
    finer = [index for index in stage_maps(maps) if maps[index].stride < maps[-1].stride]
    if not finer:
        raise ConfigError(
            "a deeplabv3plus head needs an encoder with a finer map than its last one",
            "use a head of kind deeplabv3, or an encoder whose stages shrink the map, such as a ResNet",
        )
    exact = [index for index in finer if maps[index].stride == LOW_STRIDE]
    return exact[-1] if exact else max(finer, key=lambda index: maps[index].stride)


def _resized(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
