"""2x2 max-pooling that remembers where each maximum lay, and the unpooling that puts values back there.

Two forms of the same function: with indices, as torch has it, and with one mask for each corner of the window, in
operators that every runtime has and through which channels can be followed. Source: arXiv:1511.00561, sec. 3.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 2
CORNERS = tuple(
    (row, column) for row in range(WINDOW) for column in range(WINDOW)
)  # in the order of scanning

Places = tuple[Tensor, ...]  # of the maxima: one tensor of indices, or four masks


class IndexPool(nn.Module):
    """(B, C, H, W) to the maxima (B, C, H // 2, W // 2) and their flat indices, int64, of the same shape."""

    def forward(self, x: Tensor) -> tuple[Tensor, Places]:
        pooled, indices = F.max_pool2d(x, WINDOW, WINDOW, return_indices=True)
        return pooled, (indices,)


class IndexUnpool(nn.Module):
    """Values (B, C, H // 2, W // 2) to a map (B, C, *size) that is 0 but at the indices of IndexPool."""

    def forward(self, x: Tensor, places: Places, size: tuple[int, int]) -> Tensor:
        return F.max_unpool2d(x, places[0], (WINDOW, WINDOW), (WINDOW, WINDOW), output_size=size)


class MaskPool(nn.Module):
    """(B, C, H, W) to the maxima (B, C, H // 2, W // 2) and four masks of that shape, bool.

    A mask is true where its corner of the window holds the maximum and no corner before it does: the one that torch's
    indices name, ties included, which after a ReLU are the rule rather than the exception.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Places]:
        pooled = F.max_pool2d(x, WINDOW, WINDOW)
        height, width = WINDOW * pooled.shape[-2], WINDOW * pooled.shape[-1]
        masks: list[Tensor] = []
        taken: Tensor | None = None
        for row, column in CORNERS:
            equal = x[..., row:height:WINDOW, column:width:WINDOW] == pooled
            masks.append(equal if taken is None else torch.logical_and(equal, torch.logical_not(taken)))
            taken = equal if taken is None else torch.logical_or(taken, equal)
        return pooled, tuple(masks)


class MaskUnpool(nn.Module):
    """Values (B, C, H // 2, W // 2) to a map (B, C, *size) that is 0 but where the masks of MaskPool are true."""

    def forward(self, x: Tensor, places: Places, size: tuple[int, int]) -> Tensor:
        corners = [x * mask for mask in places]
        rows = [torch.stack(corners[i : i + WINDOW], -1).flatten(-2) for i in (0, WINDOW)]
        unpooled = torch.stack(rows, -2).flatten(-3, -2)
        below, right = size[0] - unpooled.shape[-2], size[1] - unpooled.shape[-1]
        # An odd last row or column is in no window.
        return F.pad(unpooled, (0, right, 0, below)) if below or right else unpooled
