"""Multi-task attention: each task picks, stage by stage, what it needs of a shared trunk. Source: arXiv:1803.10704.

A stage gives two maps, one from inside it and its result. A task's mask, computed from the first and from what the
task picked before, multiplies the second. The layers that carry a task's picks to the next stage are shared by all
tasks and belong to the encoder. Departure from the paper: at the turn from SegNet's encoder to its decoder, where both
maps have one size, the picks are carried by one convolution instead of two with a pooling and its upsampling between.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import ConfigError
from compactmtl.models.features import FeatureMap
from compactmtl.models.layers import conv_norm_relu


class BlockMaps(nn.ModuleDict):
    """A timm ResNet's feature extractor under its own names, giving two maps a stage: before its last block, after it."""

    def __init__(self, body: nn.ModuleDict, strides: Sequence[int]) -> None:
        super().__init__(dict(body.items()))
        self.order = tuple(body)  # attention may be put beside them
        self.strides = tuple(strides)  # of the stages

    @classmethod
    def of(cls, network: nn.Module, name: str) -> BlockMaps:
        """`network`, a timm feature extractor. Raises ConfigError unless it is built like a ResNet, of two blocks a
        stage or more.
        """
        stages = [stage for key, stage in network.named_children() if _is_stage(key, stage)]
        if not isinstance(network, nn.ModuleDict) or not stages:
            raise ConfigError(
                f"model.encoder.name: a mtan head cannot read the stages of {name}",
                "use segnet or a ResNet, such as resnet50, or heads of another kind",
            )
        if any(len(cast(nn.Sequential, stage)) < 2 for stage in stages):
            raise ConfigError(
                f"model.encoder.name: a mtan head needs two blocks a stage, {name} has stages of one",
                "use a deeper ResNet, such as resnet18",
            )
        info: Any = network.feature_info
        said = dict(zip(info.module_name(), info.reduction(), strict=True))
        return cls(network, [said[key] for key, module in network.items() if _is_stage(key, module)])

    def maps(self, shapes: Sequence[torch.Size]) -> tuple[FeatureMap, ...]:
        """What `forward` gives, in its order, from the shapes (B, C, h, w) that it has."""
        return tuple(
            FeatureMap(shape[1], self.strides[index // 2], "map" if index % 2 else "before")
            for index, shape in enumerate(shapes)
        )

    @property
    def expansion(self) -> int:
        """Channels of a block's result / channels inside it."""
        stages = [self[name] for name in self.order if _is_stage(name, self[name])]
        return cast(int, cast(nn.Sequential, stages[-1])[-1].expansion)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = image
        for name in self.order:
            module = self[name]
            if _is_stage(name, module):
                blocks = cast(nn.Sequential, module)
                before = blocks[:-1](x)
                x = blocks[-1](before)
                maps += [before, x]
            else:
                x = module(x)
        return maps


def _is_stage(name: str, module: nn.Module) -> bool:
    return (
        name.startswith("layer")
        and isinstance(module, nn.Sequential)
        and all(hasattr(block, "expansion") for block in module)
    )


class SharedAttention(nn.ModuleList):
    """The layers that carry what a task picked from one stage to the next, shared by all tasks, one a transition.

    A 3x3 convolution with batch norm and ReLU; for trunks of bottleneck blocks a residual bottleneck, as the widths of
    a ResNet-50 ask for.
    """

    def __init__(self, maps: Sequence[FeatureMap], expansion: int) -> None:
        widths = [one.channels for one in maps if one.part == "map"]
        super().__init__(
            conv_norm_relu(narrow, wide) if expansion == 1 else Bottleneck(narrow, wide, expansion)
            for narrow, wide in pairwise(widths)
        )


class Bottleneck(nn.Module):
    """ReLU of a 1x1, a 3x3 and a 1x1 convolution plus a projection of the input; the size is kept.

    Source: arXiv:1512.03385, fig. 5.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        inner = max(1, outputs // expansion)
        self.body = nn.Sequential(
            conv_norm_relu(inputs, inner, 1),
            conv_norm_relu(inner, inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


class MTANHead(nn.Module):
    """The maps of an encoder that gives two a stage, and its SharedAttention, to (B, channels, H, W).

    `predictor` is the head that reads the map which the attention leaves, of the width and stride of the last one.
    """

    needs = "blocks"

    def __init__(self, maps: Sequence[FeatureMap], expansion: int, predictor: nn.Module) -> None:
        super().__init__()
        stages = list(zip(maps[::2], maps[1::2], strict=True))
        self.strides = tuple(after.stride for _, after in stages)
        self.masks = nn.ModuleList(
            _mask(
                before.channels + (after.channels if index else 0),
                max(1, after.channels // expansion),
                after.channels,
            )
            for index, (before, after) in enumerate(stages)
        )
        self.predictor = predictor

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the task's values."""
        return cast(nn.Conv2d, self.predictor.last)

    def forward(
        self, features: Sequence[Tensor], size: tuple[int, int] | None, shared: SharedAttention
    ) -> Tensor:
        """Without `size` the output keeps the size of the predictor's map."""
        picked: Tensor | None = None
        for index, mask in enumerate(self.masks):
            before, after = features[2 * index], features[2 * index + 1]
            if picked is not None:
                before = torch.cat([before, self._carried(picked, index, before, shared[index - 1])], 1)
            picked = mask(before) * after
        return self.predictor(picked, size)  # type: ignore[no-any-return]

    def _carried(self, picked: Tensor, index: int, to: Tensor, layer: nn.Module) -> Tensor:
        """`picked` at the size of the map `to`, as the paper does: pooled after the layer, upsampled before it."""
        size = (to.shape[-2], to.shape[-1])
        old, new = self.strides[index - 1], self.strides[index]
        if new < old:
            return layer(F.interpolate(picked, size=size, mode="bilinear", align_corners=False))  # type: ignore[no-any-return]
        carried: Tensor = layer(picked)
        if new > old:
            # A convolution of stride 2 rounds an odd size up, a pooling down.
            carried = F.max_pool2d(carried, new // old, new // old, ceil_mode=True)
            carried = carried[..., : size[0], : size[1]]
        return carried


def _mask(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm_relu(inputs, hidden, 1),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Sigmoid(),
    )


def attention_predictor(config: HeadConfig) -> HeadConfig:
    """The head that follows a mtan head's attention."""
    return config.model_copy(update={"kind": config.predictor})
