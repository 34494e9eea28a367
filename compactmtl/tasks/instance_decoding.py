"""From the output of an instance head to instances, in torch; nothing of it is in the exported graph.

The output (K + 4, h, w) holds at each cell of `stride` x `stride` pixels: K + 1 class logits (0 is background), the
logit of an instance's center lying there, and the way (down, right) to the center of the cell's own instance in units
of OFFSET_UNIT pixels. Decoding takes the peaks of the centers, lets every pixel of a thing vote for a center, and
gives each instance the class of most of its pixels.

Source: arXiv:1911.10194 (Panoptic-DeepLab), section 3.2. `instance_decoding_numpy` gives the same without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.tasks.instance_decoding_numpy import EXTRA_CHANNELS, OFFSET_UNIT, STRIDE, DecodingOptions


@dataclass(frozen=True)
class Instances:
    """The instances of one image.

    numbers: int64 (H, W), the instance at each pixel from 1 on, 0 where there is none.
    classes: int64 (N,), class index of instances 1..N. scores: float32 (N,) in [0, 1].
    """

    numbers: Tensor
    classes: Tensor
    scores: Tensor

    def target(self) -> Tensor:
        """As an `instances` target: int64 (2, H, W), numbers and class indices."""
        table = torch.cat([self.classes.new_zeros(1), self.classes])
        return torch.stack([self.numbers, table[self.numbers]])


def decode_instances(output: Tensor, options: DecodingOptions) -> Instances:
    """The instances of one image; output (K + 4, h, w), maps of (h * STRIDE, w * STRIDE) pixels."""
    output = output.float()
    classes = output.shape[0] - EXTRA_CHANNELS
    logits, center, offset = output[:classes], output[classes], output[classes + 1 :]
    label = upsample(logits, STRIDE)
    best, labels = label.max(0)
    places, heat = _peaks(center, options)
    rows, columns = (labels > 0).nonzero(as_tuple=True)
    if len(places) == 0 or len(rows) == 0:
        return Instances(torch.zeros_like(labels), labels.new_zeros(0), heat.new_zeros(0))
    way = upsample(offset, STRIDE)[:, rows, columns] * OFFSET_UNIT
    votes = torch.stack([rows + 0.5 + way[0], columns + 0.5 + way[1]], 1)
    owner = torch.cat([_nearest(part, places) for part in torch.split(votes, 16384)])
    label = label[:, rows, columns]
    certainty = (best[rows, columns] - label.logsumexp(0)).exp()
    return _gather(labels, _Pixels(rows, columns, owner, certainty), heat, classes)


@dataclass(frozen=True)
class _Pixels:
    """The pixels of things (N,): where they are, the number of each one's center, and the certainty of its class."""

    rows: Tensor
    columns: Tensor
    owner: Tensor
    certainty: Tensor


def _gather(labels: Tensor, things: _Pixels, heat: Tensor, classes: int) -> Instances:
    """Instances from the pixels' centers and the class labels (H, W); centers without a pixel drop out."""
    rows, columns, owner = things.rows, things.columns, things.owner
    label = labels[rows, columns]
    counts = torch.bincount(owner * classes + label, minlength=len(heat) * classes).view(-1, classes)
    pixels = counts.sum(1)
    classes_of = counts.max(1).indices
    agreed = torch.where(label == classes_of[owner], things.certainty, 0.0).double()
    sums = torch.bincount(owner, agreed, minlength=len(heat))
    scores = (heat.double() * sums / pixels.clamp(min=1)).float()
    kept = (pixels > 0).nonzero().flatten()
    order = kept[scores[kept].sort(descending=True, stable=True).indices]
    number = owner.new_zeros(len(heat))
    number[order] = torch.arange(1, len(order) + 1, device=owner.device)
    numbers = torch.zeros_like(labels)
    numbers[rows, columns] = number[owner]
    return Instances(numbers, classes_of[order] - 1, scores[order])


def _peaks(center: Tensor, options: DecodingOptions) -> tuple[Tensor, Tensor]:
    """Places (N, 2) in pixels, (down, right), and confidences (N,) of the centers, the most confident first."""
    window = options.window
    highest = F.max_pool2d(center[None, None], window, stride=1, padding=window // 2)[0, 0]
    heat = center.sigmoid()
    rows, columns = ((center == highest) & (heat >= options.threshold)).nonzero(as_tuple=True)
    order = center[rows, columns].sort(descending=True, stable=True).indices[: options.limit]
    rows, columns = rows[order], columns[order]
    places = torch.stack([rows + 0.5, columns + 0.5], 1) * STRIDE
    return places, heat[rows, columns]


def _nearest(votes: Tensor, places: Tensor) -> Tensor:
    """Index of the place nearest to each vote: (M, 2) and (N, 2) to (M,)."""
    down = votes[:, None, 0] - places[None, :, 0]
    right = votes[:, None, 1] - places[None, :, 1]
    return (down * down + right * right).min(1).indices


def upsample(value: Tensor, factor: int) -> Tensor:
    """Bilinear, (C, h, w) to (C, h * factor, w * factor), pixel centers aligned.

    Spelt out, in the order in which the numpy form works, so that both round alike.
    """
    for axis in (1, 2):
        count = value.shape[axis]
        places = (torch.arange(count * factor, device=value.device, dtype=torch.float32) + 0.5) / factor - 0.5
        places = places.clamp(0, count - 1)
        low = places.floor().long()
        share = (places - low).view(-1, 1) if axis == 1 else places - low
        near = value.index_select(axis, low)
        value = near + (value.index_select(axis, (low + 1).clamp(max=count - 1)) - near) * share
    return value
