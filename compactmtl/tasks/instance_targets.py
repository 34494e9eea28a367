"""What an instance head should give: classes, centers and offsets at the output's cells, from an `instances` target.

Shape suffixes: B batch, K classes, H, W pixels, h, w cells of STRIDE x STRIDE pixels.
Source: arXiv:1911.10194 (Panoptic-DeepLab), section 3.2; the size of a center's bump follows arXiv:1904.07850.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.tasks.instance_decoding_numpy import OFFSET_UNIT, STRIDE

# Standard deviation of a center's bump as a share of the instance's side (the root of its area), and its range in cells.
_SPREAD, _LEAST, _MOST = 1 / 12, 0.4, 2.0
_NONE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class CellTargets:
    """Targets of a batch at the output's cells.

    classes: float32 (B, K + 1, h, w), the share of each class (0 is background) in the cell's known pixels.
    known: float32 (B, h, w), the share of the cell that is known, not of a crowd.
    center: float32 (B, h, w) in [0, 1], 1 exactly where an instance's center lies.
    offset: float32 (B, 2, h, w), the way (down, right) to the center, in units of OFFSET_UNIT pixels.
    owned: bool (B, h, w), where a cell holds an instance and so has an offset.
    small: bool (B, h, w), where that instance is a small one.
    """

    classes: Tensor
    known: Tensor
    center: Tensor
    offset: Tensor
    owned: Tensor
    small: Tensor

    def to(self, dtype: torch.dtype) -> CellTargets:
        """The same with shares and offsets of another type."""
        return replace(
            self,
            classes=self.classes.to(dtype),
            known=self.known.to(dtype),
            center=self.center.to(dtype),
            offset=self.offset.to(dtype),
        )


def cell_targets(target: Tensor, classes: int, small_area: float) -> CellTargets:
    """From instances int64 (B, 2, H, W) with `classes` = K; `small_area` is in pixels.

    An image whose sides are no multiples of STRIDE is filled up with unknown pixels. A cell that holds several
    instances points to the smallest of them: the others have cells of their own.
    """
    height, width = target.shape[-2:]
    target = F.pad(target, (0, -width % STRIDE, 0, -height % STRIDE), value=-1)
    numbers, labels = target.unbind(1)
    shares, known = _class_shares(numbers, labels, classes)
    index, area, places = _instances(numbers)
    smallest = _smallest_in_cell(index, area)
    owned = smallest < len(area)
    of = smallest.clamp(max=max(len(area) - 1, 0))
    batch, cell_rows, cell_columns = owned.shape
    offset = places.new_zeros(batch, 2, cell_rows, cell_columns)
    small = torch.zeros_like(owned)
    if len(area):
        offset = ((places[of].movedim(-1, 1) - _cell_places(owned)) / OFFSET_UNIT) * owned[:, None]
        small = owned & (area[of] < small_area)
    image = torch.zeros(len(area), dtype=torch.int64, device=target.device)
    image[index[index >= 0]] = _image_of(numbers)[index >= 0]
    center = _bumps(owned, places, area, image)
    return CellTargets(shares, known, center, offset, owned, small)


def _class_shares(numbers: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Shares (B, K + 1, h, w) of the classes among a cell's known pixels, and the known share (B, h, w)."""
    batch, height, width = numbers.shape
    rows, columns = height // STRIDE, width // STRIDE
    label = torch.where(numbers > 0, labels + 1, torch.zeros_like(labels))
    down = torch.arange(height, device=numbers.device).div(STRIDE, rounding_mode="floor")[:, None]
    right = torch.arange(width, device=numbers.device).div(STRIDE, rounding_mode="floor")
    cell = ((_image_of(numbers) * (classes + 1) + label) * rows + down) * columns + right
    size = batch * (classes + 1) * rows * columns
    counts = torch.bincount(cell[numbers >= 0], minlength=size).view(batch, classes + 1, rows, columns)
    total = counts.sum(1)
    return counts / total.clamp(min=1)[:, None], total / STRIDE**2


def _instances(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Instances of the whole batch: index (B, H, W) of each pixel's, -1 for none; area (N,) and place (N, 2) in pixels."""
    things = numbers > 0
    keys = _image_of(numbers)[things] * (int(numbers.max().clamp(min=0)) + 1) + numbers[things]
    unique, inverse = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    index = torch.full_like(numbers, -1)
    index[things] = inverse
    area = torch.bincount(inverse, minlength=len(unique))
    places = [
        # not bincount, which has no deterministic form on CUDA with weights
        axis.new_zeros(len(unique), dtype=torch.float64).index_add_(0, inverse, axis.double() + 0.5) / area
        for axis in things.nonzero(as_tuple=True)[1:]
    ]
    return index, area, torch.stack(places, 1).float()


def _smallest_in_cell(index: Tensor, area: Tensor) -> Tensor:
    """Index (B, h, w) of the smallest instance in each cell, len(area) where there is none."""
    batch, height, width = index.shape
    cells = index.view(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE).movedim(2, 3).flatten(3)
    sizes = torch.cat([area, area.new_tensor([_NONE])])  # index -1, no instance, reads the last
    best = sizes[cells].min(-1, keepdim=True).indices
    smallest = cells.gather(-1, best)[..., 0]
    return torch.where(smallest < 0, torch.full_like(smallest, len(area)), smallest)


def _bumps(owned: Tensor, places: Tensor, area: Tensor, image: Tensor) -> Tensor:
    """Gaussian bumps (B, h, w) with 1 at each instance's center cell; the highest where they meet."""
    batch, rows, columns = owned.shape
    center = torch.zeros(batch, rows, columns, device=owned.device)
    if len(area) == 0:
        return center
    cell = (places / STRIDE).floor()
    spread = (_SPREAD * area.float().sqrt() / STRIDE).clamp(_LEAST, _MOST)[:, None]
    down = (-((torch.arange(rows, device=owned.device) - cell[:, :1]) ** 2) / (2 * spread**2)).exp()
    right = (-((torch.arange(columns, device=owned.device) - cell[:, 1:]) ** 2) / (2 * spread**2)).exp()
    for number in range(batch):
        mine = image == number
        if mine.any():
            center[number] = (down[mine, :, None] * right[mine, None, :]).amax(0)
    return center


def _cell_places(owned: Tensor) -> Tensor:
    """Centers of the cells in pixels, float32 (2, h, w)."""
    rows, columns = (
        (torch.arange(count, device=owned.device, dtype=torch.float32) + 0.5) * STRIDE
        for count in owned.shape[-2:]
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def _image_of(numbers: Tensor) -> Tensor:
    """Number of its image in the batch at each pixel."""
    return torch.arange(len(numbers), device=numbers.device).view(-1, 1, 1).expand_as(numbers)
