"""Heads: the part of the network that belongs to one task, from features to the task's output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.recipe import HeadConfig
from compactmtl.config.trust import is_class_name
from compactmtl.errors import ConfigError
from compactmtl.models.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from compactmtl.models.features import FeatureMap, Needs
from compactmtl.models.instance_head import InstanceHead
from compactmtl.models.layers import conv_norm_relu
from compactmtl.models.mtan import MTANHead, attention_predictor
from compactmtl.models.own_parts import build_own_head, own_needs
from compactmtl.tasks import Task

VECTOR_KINDS = ("linear", "mlp")  # heads that give one value an image; all others give maps
OWN_KINDS = ("instances",)  # heads whose output only the kind of task reads that names them as its `own_head`
NEEDS: dict[str, Needs] = {
    "deeplabv3plus": "pyramid",
    "instances": "pyramid",
    "mtan": "blocks",
}  # of the encoder; others read its last map
DEFAULT_STRIDE = 16  # of a map that nothing is said of


class LinearHead(nn.Module):
    """Features (B, C), or a map (B, C, h, w) that is averaged first, to (B, channels).

    `depth` hidden layers of `width` features with ReLU (before it batch norm, where `normalized`), dropout, one last
    linear layer, then `output`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        config: HeadConfig,
        output: nn.Module | None = None,
        *,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [config.width] * config.depth
        hidden = _normalized_linear if normalized else _hidden_linear
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(*(hidden(*pair) for pair in pairwise(widths)))
        self.dropout = nn.Dropout(config.dropout)
        self.last = nn.Linear(widths[-1], channels)
        self.output = nn.Identity() if output is None else output

    def forward(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`size` is not used: every head is called alike."""
        if features.ndim == 4:
            features = self.pool(features).flatten(1)
        return self.output(self.last(self.dropout(self.hidden(features))))  # type: ignore[no-any-return]


class FCNHead(nn.Module):
    """A map (B, C, h, w) to (B, channels, H, W): `depth` 3x3 convolutions of `width` channels with batch norm and
    ReLU, dropout, one 1x1 convolution, bilinear upsampling to `size` = (H, W), then `output`.

    Source: arXiv:1411.4038 (fully convolutional networks), with the upsampling fixed.
    """

    def __init__(
        self, in_channels: int, channels: int, config: HeadConfig, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [config.width] * config.depth
        self.hidden = nn.Sequential(*(conv_norm_relu(*pair) for pair in pairwise(widths)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.last = nn.Conv2d(widths[-1], channels, 1)
        self.output = nn.Identity() if output is None else output

    def forward(self, features: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Without `size` the output keeps the map's own size."""
        x = self.last(self.dropout(self.hidden(features)))
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.output(x)  # type: ignore[no-any-return]


def _hidden_linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


def _normalized_linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


def head_config(task: Task, config: HeadConfig | None) -> HeadConfig:
    """The head that a recipe gives a task; by default the kind of head that the task names.

    Raises ConfigError where the kind of head cannot give the task's output.
    """
    if config is None:
        return HeadConfig.model_validate({"kind": task.default_head})
    if is_class_name(config.kind):  # it knows itself what it gives
        return config
    if task.own_head not in (None, config.kind) or (task.own_head is None and config.kind in OWN_KINDS):
        raise ConfigError(
            f"tasks.{task.name}.head.kind: a {config.kind} head cannot serve a task of kind {task.kind}",
            f"use kind: {task.own_head}"
            if task.own_head
            else f"a {config.kind} head gives outputs that another kind of task reads; use kind: {task.default_head}",
        )
    if dense_head(config, task) != task.dense:
        gives = "a map" if task.dense else "one value an image"
        right = (
            "fcn (with depth: 0 it is one 1x1 convolution) or deeplabv3" if task.dense else "linear or mlp"
        )
        raise ConfigError(
            f"tasks.{task.name}.head.kind: a {config.kind} head cannot serve a {task.kind} task, which gives {gives}",
            f"use kind: {right}",
        )
    return config


def dense_head(config: HeadConfig, task: Task) -> bool:
    """Whether this kind of head gives a map; of a class of the user's own: whether its task needs one."""
    return task.dense if is_class_name(config.kind) else config.kind not in VECTOR_KINDS


def needs_of(kind: str, key: str) -> Needs:
    """What a kind of head, the value of `key`, reads of the encoder. Raises for a class that cannot be imported."""
    return own_needs(kind, key) if is_class_name(kind) else NEEDS.get(kind, "last")


def build_head(
    task: Task,
    in_channels: int,
    config: HeadConfig | None = None,
    maps: Sequence[FeatureMap] = (),
    *,
    expansion: int = 1,
) -> nn.Module:
    """A head for `task` on features of `in_channels` channels, called as head(features, (H, W)).

    `maps` describes all maps that the encoder gives, for heads that read several or go by the stride of the last;
    such heads are called with the whole list. `expansion` is the encoder's, for its attention.

    Raises ConfigError where the configured kind of head cannot give the task's output or read these maps.
    """
    config = head_config(task, config)
    if is_class_name(config.kind):
        key = f"tasks.{task.name}.head"
        return build_own_head(key, in_channels, task.channels, config, maps, task.head_output())
    head = _head(task, in_channels, config, maps, expansion)
    if isinstance(head, InstanceHead):
        return head
    if task.head_bias is not None:
        assert head.last.bias is not None
        nn.init.constant_(head.last.bias, task.head_bias)
    return head


def _head(
    task: Task, in_channels: int, config: HeadConfig, maps: Sequence[FeatureMap], expansion: int
) -> LinearHead | FCNHead | DeepLabV3Head | DeepLabV3PlusHead | MTANHead | InstanceHead:
    output = task.head_output()
    if config.kind == "mtan":
        predictor = _head(task, in_channels, attention_predictor(config), maps, expansion)
        return MTANHead(maps, expansion, predictor)
    if config.kind == "instances":
        return InstanceHead(maps, task.channels, config)
    if config.kind == "deeplabv3plus":
        return DeepLabV3PlusHead(maps, task.channels, config, output)
    if config.kind == "deeplabv3":
        stride = maps[-1].stride if maps else DEFAULT_STRIDE
        return DeepLabV3Head(in_channels, task.channels, config, output, stride=stride)
    if config.kind == "fcn":
        return FCNHead(in_channels, task.channels, config, output)
    return LinearHead(in_channels, task.channels, config, output, normalized=config.kind == "mlp")
