"""Instance segmentation: center heat map, offsets and classes in one output, without suppression in the graph.

Source: arXiv:1911.10194 (Panoptic-DeepLab); the loss of the centers is that of arXiv:1904.07850, eq. 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from compactmtl.config.recipe import Positive, Share
from compactmtl.errors import ConfigError
from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array, Legend, MapTask, MetricInfo
from compactmtl.tasks.decoding import Decoding, InstanceDecoding
from compactmtl.tasks.instance_decoding_numpy import (
    EXTRA_CHANNELS,
    OFFSET_UNIT,
    STRIDE,
    DecodingOptions,
    decode_instances_numpy,
)
from compactmtl.tasks.summaries import LEGEND_CLASSES, class_colors, count_instances, list_instances

if TYPE_CHECKING:
    from torch import Tensor

    from compactmtl.tasks.instance_decoding import Instances
    from compactmtl.tasks.instance_scoring import InstanceMetrics
    from compactmtl.tasks.instance_targets import CellTargets

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


class InstancesTask(MapTask):
    """Output (B, K + 4, h, w) at a quarter of the image's size, rounded up, against instances int64 (B, 2, H, W).

    Channels: K + 1 class logits (0 background), the center's logit, the offset (down, right) to the center in units
    of 16 pixels; `decode` makes instances of it. Crowds (-1) count nowhere in the loss.

    Loss: `panoptic`, cross-entropy of the classes with the shares in a cell as soft labels, plus the focal loss of
    the centers, plus L1 of the offsets where an instance is; each a mean over images, cells and instances.

    Metrics: mask AP as pycocotools computes it, `ap` over IoU 0.5 to 0.95, `ap50` and `ap75`; at the image's own
    size where the data set gives its instances so (see `InstanceReference`), else at the target's size.
    """

    options: InstancesOptions
    Options = InstancesOptions
    target_kind = "instances"
    least_classes = 1
    stride = STRIDE
    own_head = "instances"
    default_head = "instances"
    losses = ("panoptic",)
    primary = "ap50"
    meaning = (
        "per cell of 4×4 pixels: logits of the background and of each class, logit of a center, "
        "offset (down, right) to the center in units of 16 pixels"
    )
    values = "mixed"
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "ap": MetricInfo(higher_is_better=True, share=True),
        "ap50": MetricInfo(higher_is_better=True, share=True),
        "ap75": MetricInfo(higher_is_better=True, share=True),
    }
    distillation = None
    scores_references = True

    def check(self) -> None:
        """Raises ConfigError for an even window."""
        if self.options.window % 2 == 0:
            raise ConfigError(
                f"tasks.{self.name}.options.window: {self.options.window} is even, a center has no middle in it",
                f"use {self.options.window + 1}",
            )

    @property
    def channels(self) -> int:
        return len(self.spec.classes) + 1 + EXTRA_CHANNELS

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts, all but crowds: bool (B, H, W)."""
        return target[:, 0] >= 0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.instance_targets import cell_targets
        from compactmtl.tasks.losses import at_least_float32

        output = at_least_float32(output)
        classes = len(self.spec.classes)
        small_area = self.options.small_area * target.shape[-2] * target.shape[-1]
        cells = cell_targets(target, classes, small_area).to(output.dtype)
        logits, center, offset = output[:, : classes + 1], output[:, classes + 1], output[:, classes + 2 :]
        options = self.options
        return (
            options.classes * self._class_loss(logits, cells)
            + options.centers * center_loss(center, cells.center, cells.known)
            + options.offsets * self._offset_loss(offset, cells)
        )

    def _class_loss(self, logits: Tensor, cells: CellTargets) -> Tensor:
        """Cross-entropy against the shares, a mean over the known part of the cells; small instances weigh more."""
        from compactmtl.distributed.sums import summed

        entropy = -(cells.classes * logits.log_softmax(1)).sum(1)
        weight = cells.known * self._weights(cells)
        if self.options.balance > 0:
            (counts,) = summed((cells.classes * cells.known[:, None]).sum((0, 2, 3), keepdim=True))
            rarity = counts.clamp(min=1) ** -self.options.balance
            weight = weight * (cells.classes * rarity).sum(1)
        return weighted_mean(entropy, weight)

    def _offset_loss(self, offset: Tensor, cells: CellTargets) -> Tensor:
        """|difference| down plus right, a mean over the cells of instances."""
        weight = cells.owned * self._weights(cells)
        return weighted_mean((offset - cells.offset).abs().sum(1), weight)

    def _weights(self, cells: CellTargets) -> Tensor:
        return 1 + (self.options.small - 1) * cells.small

    def metrics(self) -> InstanceMetrics:
        from compactmtl.tasks.instance_scoring import InstanceMetrics

        return InstanceMetrics(self.name, self.spec.classes, self.instances)

    def instances(self, output: Tensor) -> Instances:
        """The instances in the output (K + 4, h, w) of one image."""
        from compactmtl.tasks.instance_decoding import decode_instances

        return decode_instances(output, self.options)

    def decode(self, output: Tensor) -> Tensor:
        """Instances int64 (B, 2, 4 h, 4 w): numbers from 1 on, the best first, and class indices."""
        import torch

        return torch.stack([self.instances(one).target() for one in output])

    @property
    def decoding(self) -> Decoding:
        options = self.options
        return Decoding(
            op="panoptic",
            how="enlarge logits and offsets `cell` times, bilinearly; a pixel's class is the largest logit, 0 the background; "
            "centers are the peaks of the center's sigmoid; a pixel that is no background belongs to the center nearest to "
            "where its offset points; an instance has the class of most of its pixels",
            gives="two maps: the number of each pixel's instance, from 1 (0 none, the best first), and its class index",
            panoptic=InstanceDecoding(
                cell=STRIDE,
                offset_unit=OFFSET_UNIT,
                threshold=options.threshold,
                window=options.window,
                limit=options.limit,
            ),
        )

    def decode_array(self, output: Array) -> Array:
        options = self.options
        maps = []
        for one in output:
            numbers, classes, _ = decode_instances_numpy(
                one, threshold=options.threshold, window=options.window, limit=options.limit
            )
            table = np.concatenate([np.zeros(1, np.int64), classes])
            maps.append(np.stack([numbers, table[numbers]]))
        return np.stack(maps)

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        return pictures.instances_picture(value, len(self.spec.classes))

    def caption(self, value: Array) -> str:
        """Counts by class, such as "3 person, 1 dog"; crowds are left out."""
        counts = count_instances(value, self.spec.classes)
        return ", ".join(f"{count} {name}" for name, count in counts) or "nothing"

    def legend(self, value: Array) -> Legend:
        """The most frequent classes with their counts."""
        colors = class_colors(self.spec.classes)
        counts = count_instances(value, self.spec.classes)[:LEGEND_CLASSES]
        return tuple((colors[name], f"{count} {name}") for name, count in counts)

    def summary(self, value: Array, probabilities: Mapping[str, float]) -> dict[str, Any]:
        return {"instances": list_instances(value, self.spec.classes)}


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of values by weights of the same shape; a zero with a graph where all weights are 0."""
    from compactmtl.distributed.sums import summed

    total, whole = summed((values * weight).sum(), weight.sum())
    # not 1: the known part of a batch may be less than one cell
    return total / whole.clamp(min=float(np.finfo(np.float32).tiny))


def center_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Focal loss of center logits (B, h, w) against bumps with 1 at the centers, per center; `known` weighs cells.

    Source: arXiv:1904.07850, eq. 1, with its α = 2 and β = 4.
    """
    from torch.nn.functional import logsigmoid

    from compactmtl.distributed.sums import summed

    positive = (target == 1) & (known > 0)
    chance = logits.sigmoid()
    near = -logsigmoid(logits) * (1 - chance) ** 2 * positive
    far = -logsigmoid(-logits) * chance**2 * (1 - target) ** 4 * known
    total, count = summed((near + far.masked_fill(positive, 0)).sum(), positive.sum())
    return total / count.clamp(min=1)
