"""Heads: the part of the network that belongs to one task, from features to the task's output."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compactmtl.config.recipe import HeadConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import Task


class Affine(nn.Module):
    """x * scale + shift with fixed numbers: a standardized value in the data's unit.

    The layer before it learns at the pace of a standardized target whatever the unit is, starts near the training
    mean, and the exported model still speaks in the unit.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("shift", torch.tensor(float(shift)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class PositiveScale(nn.Module):
    """softplus(x) * scale: a depth or disparity in the data's unit, always positive, and linear when large."""

    scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.softplus(x) * self.scale  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """Features (B, C), or a map (B, C, h, w) that is averaged first, to (B, channels).

    `depth` hidden layers of `width` features with ReLU, dropout, one last linear layer, then `output`.
    """

    def __init__(
        self, in_channels: int, channels: int, config: HeadConfig, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [config.width] * config.depth
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(*(_hidden_linear(*pair) for pair in pairwise(widths)))
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
        self.hidden = nn.Sequential(*(_hidden_conv(*pair) for pair in pairwise(widths)))
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


def _hidden_conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def head_config(task: Task, config: HeadConfig | None) -> HeadConfig:
    """The head that a recipe gives a task: by default `fcn` for maps, `linear` for one value an image.

    Raises ConfigError where the kind of head cannot give the task's output.
    """
    if config is None:
        return HeadConfig(kind="fcn" if task.dense else "linear")
    if (config.kind == "fcn") != task.dense:
        gives, right = ("one value an image", "linear") if config.kind == "fcn" else ("a map", "fcn")
        raise ConfigError(
            f"tasks.{task.name}.head.kind: a {config.kind} head cannot serve a {task.kind} task, which gives {gives}",
            f"use kind: {right}" + ("" if right == "linear" else "; with depth: 0 it is one 1x1 convolution"),
        )
    return config


def build_head(task: Task, in_channels: int, config: HeadConfig | None = None) -> nn.Module:
    """A head for `task` on features of `in_channels` channels, called as head(features, (H, W)).

    Raises ConfigError where the configured kind of head cannot give the task's output.
    """
    config = head_config(task, config)
    kind = FCNHead if config.kind == "fcn" else LinearHead
    head = kind(in_channels, task.channels, config, _output(task))
    if task.spec.kind in ("depth", "disparity") and task.spec.mean > 0:
        assert head.last.bias is not None
        ratio = task.spec.mean / task.spec.std
        # The inverse of softplus: the head starts at the training mean.
        nn.init.constant_(head.last.bias, ratio + math.log(-math.expm1(-ratio)))
    elif task.kind == "regression":
        assert head.last.bias is not None
        nn.init.zeros_(head.last.bias)  # the affine after it makes that the training mean
    return head


def _output(task: Task) -> nn.Module:
    """The fixed function after a task's last layer."""
    if task.kind == "regression":
        return Affine(task.spec.std, task.spec.mean)
    if task.spec.kind in ("depth", "disparity"):
        return PositiveScale(task.spec.std)
    return nn.Identity()
