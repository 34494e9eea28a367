"""Depth: one distance a pixel, in the data's unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array
from compactmtl.tasks.positive_map import PositiveMapTask

if TYPE_CHECKING:
    from torch import Tensor

# Far below any depth that a sensor gives; keeps the logarithm of an underflown output finite.
LEAST_DEPTH = 1e-6


class DepthOptions(Frozen):
    """Options of a depth task."""

    max_depth: Positive | None = None  # targets beyond it count nowhere


class DepthTask(PositiveMapTask):
    """Depth (B, 1, H, W) in the target's unit, both ways; a target of 0, beyond `max_depth` or not finite is unknown.

    Losses over known pixels: `l1`, |d - d*|; `log_l1`, |log d - log d*|, which weighs near and far alike.
    """

    options: DepthOptions
    Options = DepthOptions
    target_kind = "depth"
    meaning = "depth at each pixel"
    losses = ("l1", "log_l1")

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool, of the target's shape."""
        known = super().known(target)
        if self.options.max_depth is not None:
            known &= target <= self.options.max_depth
        return known

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.losses import at_least_float32, masked_mean

        known = self.known(target)
        output = at_least_float32(output)
        # Masked before the arithmetic: an infinite or zero target would make gradients that are not finite.
        target = target.where(known, target.new_ones(()))
        if self.loss_name == "log_l1":
            output, target = output.clamp(min=LEAST_DEPTH).log(), target.log()
        return masked_mean((output - target).abs(), known)

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        return pictures.depth_picture(value, reference)
