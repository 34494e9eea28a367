"""Instance segmentation: center heat map, offsets and classes in one output, without suppression in the graph.

Source: arXiv:1911.10194 (Panoptic-DeepLab); the loss of the centers is that of arXiv:1904.07850, eq. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from compactmtl.config.recipe import Positive, Share, TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import pictures
from compactmtl.tasks.base import MetricInfo, TargetSpec
from compactmtl.tasks.common import check_spec, choose_loss, read_options
from compactmtl.tasks.instance_decoding import Instances, decode_instances
from compactmtl.tasks.instance_decoding_numpy import EXTRA_CHANNELS, STRIDE, DecodingOptions
from compactmtl.tasks.instance_scoring import InstanceMetrics
from compactmtl.tasks.instance_targets import CellTargets, cell_targets

Weight = Annotated[float, Field(ge=0)]


class InstancesOptions(DecodingOptions):
    """Options of an instances task: decoding, and the weights of the loss's parts."""

    classes: Weight = Field(1.0, description="weight of the classes' cross-entropy")
    centers: Weight = Field(1.0, description="weight of the centers' focal loss")
    offsets: Weight = Field(1.0, description="weight of the offsets' L1, in units of 16 pixels")
    balance: Share = Field(
        0.0,
        description="power p: a class that covers n cells of the batch weighs n^-p a cell; 0.5 helps rare classes",
    )
    small: Positive = Field(3.0, description="weight of a small instance's cells among the others")
    small_area: Share = Field(1 / 64, description="largest share of the image that a small instance covers")


@dataclass(frozen=True)
class InstancesTask:
    """Output (B, K + 4, h, w) at a quarter of the image's size, rounded up, against instances int64 (B, 2, H, W).

    Channels: K + 1 class logits (0 background), the center's logit, the offset (down, right) to the center in units
    of 16 pixels; `decode` makes instances of it. Crowds (-1) count nowhere in the loss.

    Loss: `panoptic`, cross-entropy of the classes with the shares in a cell as soft labels, plus the focal loss of
    the centers, plus L1 of the offsets where an instance is; each a mean over images, cells and instances.

    Metrics: mask AP as pycocotools computes it, `ap` over IoU 0.5 to 0.95, `ap50` and `ap75`; at the image's own
    size where the data set gives its instances so (see `InstanceReference`), else at the target's size.
    """

    name: str
    target: str
    spec: TargetSpec
    weight: float
    loss_name: str
    options: InstancesOptions

    kind: ClassVar[str] = "instances"
    dense: ClassVar[bool] = True
    stride: ClassVar[int] = STRIDE
    losses: ClassVar[tuple[str, ...]] = ("panoptic",)
    primary: ClassVar[str] = "ap50"
    meaning: ClassVar[str] = (
        "per cell of 4×4 pixels: logits of the background and of each class, logit of a center, "
        "offset (down, right) to the center in units of 16 pixels"
    )
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "ap": MetricInfo(higher_is_better=True, share=True),
        "ap50": MetricInfo(higher_is_better=True, share=True),
        "ap75": MetricInfo(higher_is_better=True, share=True),
    }

    @classmethod
    def build(cls, name: str, config: TaskConfig, spec: TargetSpec) -> Self:
        """Raises ConfigError where target, loss or options do not fit."""
        check_spec(name, config, spec, "instances")
        if not spec.classes:
            raise ConfigError(
                f"tasks.{name}: target {config.target or name!r} names no classes",
                "mend the classes in the data set's target specification",
            )
        options = read_options(InstancesOptions, name, config)
        if options.window % 2 == 0:
            raise ConfigError(
                f"tasks.{name}.options.window: {options.window} is even, a center has no middle in it",
                f"use {options.window + 1}",
            )
        loss = choose_loss(name, config, cls.losses)
        return cls(name, config.target or name, spec, config.weight, loss, options)

    @property
    def channels(self) -> int:
        return len(self.spec.classes) + 1 + EXTRA_CHANNELS

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        output = output.float()
        classes = len(self.spec.classes)
        small_area = self.options.small_area * target.shape[-2] * target.shape[-1]
        cells = cell_targets(target, classes, small_area)
        logits, center, offset = output[:, : classes + 1], output[:, classes + 1], output[:, classes + 2 :]
        options = self.options
        return (
            options.classes * self._class_loss(logits, cells)
            + options.centers * center_loss(center, cells.center, cells.known)
            + options.offsets * self._offset_loss(offset, cells)
        )

    def _class_loss(self, logits: Tensor, cells: CellTargets) -> Tensor:
        """Cross-entropy against the shares, a mean over the known part of the cells; small instances weigh more."""
        entropy = -(cells.classes * logits.log_softmax(1)).sum(1)
        weight = cells.known * self._weights(cells)
        if self.options.balance > 0:
            counts = (cells.classes * cells.known[:, None]).sum((0, 2, 3), keepdim=True)
            rarity = counts.clamp(min=1) ** -self.options.balance
            weight = weight * (cells.classes * rarity).sum(1)
            return (entropy * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        return (entropy * weight).sum() / weight.sum().clamp(min=1)

    def _offset_loss(self, offset: Tensor, cells: CellTargets) -> Tensor:
        """|difference| down plus right, a mean over the cells of instances."""
        weight = cells.owned * self._weights(cells)
        return ((offset - cells.offset).abs().sum(1) * weight).sum() / weight.sum().clamp(min=1)

    def _weights(self, cells: CellTargets) -> Tensor:
        return 1 + (self.options.small - 1) * cells.small

    def metrics(self) -> InstanceMetrics:
        return InstanceMetrics(self.name, self.spec.classes, self.instances)

    def instances(self, output: Tensor) -> Instances:
        """The instances in the output (K + 4, h, w) of one image."""
        return decode_instances(output, self.options)

    def decode(self, output: Tensor) -> Tensor:
        """Instances int64 (B, 2, 4 h, 4 w): numbers from 1 on, the best first, and class indices."""
        return torch.stack([self.instances(one).target() for one in output])

    def picture(self, value: NDArray[Any], reference: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        return pictures.instances_picture(value, len(self.spec.classes))

    def caption(self, value: NDArray[Any]) -> str:
        """Counts by class, such as "3 person, 1 dog"; crowds are left out."""
        return pictures.instances_text(value, self.spec.classes)


def center_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Focal loss of center logits (B, h, w) against bumps with 1 at the centers, per center; `known` weighs cells.

    Source: arXiv:1904.07850, eq. 1, with its α = 2 and β = 4.
    """
    positive = (target == 1) & (known > 0)
    chance = logits.sigmoid()
    near = -F.logsigmoid(logits) * (1 - chance) ** 2 * positive
    far = -F.logsigmoid(-logits) * chance**2 * (1 - target) ** 4 * known
    return (near + torch.where(positive, torch.zeros_like(far), far)).sum() / positive.sum().clamp(min=1)
