"""Disparity: one value a pixel that is proportional to inverse depth, in the data's unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.tasks import pictures
from compactmtl.tasks.base import Array
from compactmtl.tasks.positive_map import PositiveMapTask

if TYPE_CHECKING:
    from torch import Tensor


class DisparityOptions(Frozen):
    """Options of a disparity task."""

    min_disparity: Positive | None = None  # targets below it, too far to be told from infinity, count nowhere


class DisparityTask(PositiveMapTask):
    """Disparity (B, 1, H, W) in the target's unit, both ways; a target of 0, below `min_disparity` or not finite is
    unknown.

    Losses over known pixels: `l1`, |d - d*|; `l1_std`, that in standard deviations of the target, so that a task's
    weight does not depend on its unit.
    """

    options: DisparityOptions
    Options = DisparityOptions
    target_kind = "disparity"
    meaning = "disparity at each pixel, proportional to 1 / depth"
    losses = ("l1", "l1_std")

    def known(self, target: Tensor) -> Tensor:
        """Where a target counts: bool, of the target's shape."""
        known = super().known(target)
        if self.options.min_disparity is not None:
            known &= target >= self.options.min_disparity
        return known

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.losses import at_least_float32, masked_mean

        known = self.known(target)
        # Masked before the arithmetic: an infinite or NaN target would make gradients that are not finite.
        error = (at_least_float32(output) - target.where(known, target.new_zeros(()))).abs()
        return masked_mean(error / self.spec.std if self.loss_name == "l1_std" else error, known)

    def picture(self, value: Array, reference: Array | None = None) -> pictures.Picture:
        return pictures.disparity_picture(value, reference)
