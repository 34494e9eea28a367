"""Regression: one number an image, such as an age in years."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.tasks.base import Array
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.scalar import ScalarTask

if TYPE_CHECKING:
    from torch import Tensor, nn


class RegressionOptions(Frozen):
    """Options of a regression task."""

    beta: Positive = 1.0  # where smooth_l1 turns from square to linear, in standard deviations


class RegressionTask(ScalarTask):
    """A value (B, 1) in the target's unit against a scalar (B,); a target that is not finite is unknown.

    The output is in the unit itself, so that an exported model needs no key to be read. The losses `smooth_l1`, `l1`
    and `l2` divide by the training split's standard deviation, so that a task's weight does not depend on its unit.
    """

    options: RegressionOptions
    Options = RegressionOptions
    channels = 1
    meaning = "the value itself"
    values = "value"
    axis = "value"
    losses = ("smooth_l1", "l1", "l2")
    head_bias = 0.0  # which the affine function behind the layer makes the training mean
    uncertainty_scale = 0.5

    def head_output(self) -> nn.Module:
        """From a standardized value to the unit."""
        from compactmtl.tasks.output_layers import Affine

        return Affine(self.spec.std, self.spec.mean)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from torch.nn.functional import smooth_l1_loss

        from compactmtl.tasks.losses import at_least_float32, masked_mean

        known = self.known(target)
        # Masked before the arithmetic: a NaN target would make a NaN gradient.
        target = target.where(known, target.new_zeros(()))
        error = (at_least_float32(output).squeeze(1) - target) / self.spec.std
        if self.loss_name == "l1":
            values = error.abs()
        elif self.loss_name == "l2":
            values = error.square()
        else:
            zeros = error.new_zeros(error.shape)
            values = smooth_l1_loss(error, zeros, reduction="none", beta=self.options.beta)
        return masked_mean(values, known)

    def decode(self, output: Tensor) -> Tensor:
        """Value (B,) in the target's unit."""
        return output.squeeze(1)

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="first",
            how="take the one number of axis 1 as it is: it is in the unit, no mean or deviation is left to apply",
            gives=f"{self.name} {self.in_unit}",
        )

    def decode_array(self, output: Array) -> Array:
        return output[:, 0]
