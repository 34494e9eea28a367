"""Binned regression: one number an image as the expectation of a distribution over bins.

Sources: the expectation of a softmax over bins, Rothe et al., "Deep expectation of real and apparent age from a single
image", IJCV 2018; soft targets, arXiv:1611.01731 (Gaussian) and arXiv:2403.03950, section 3.1 (two-hot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator

from compactmtl.config.recipe import Frozen, Positive
from compactmtl.tasks.base import Array
from compactmtl.tasks.decoding import Decoding
from compactmtl.tasks.numeric import softmax
from compactmtl.tasks.scalar import ScalarTask

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class BinnedRegressionOptions(Frozen):
    """Options of a binned regression task; `low` and `high` have no default."""

    low: float  # value of the first bin, in the target's unit; no prediction lies below it
    high: float  # value of the last bin
    bins: Annotated[int, Field(ge=2)] = 32  # spread evenly from low to high, both included
    sigma: Positive | None = (
        None  # spread of a soft target, in the unit; none: two bins share a value between them
    )
    expectation_weight: Positive = 1.0  # of the second term of cross_entropy_l1

    @model_validator(mode="after")
    def _range(self) -> BinnedRegressionOptions:
        if not self.low < self.high:
            raise ValueError(f"the bins need low < high, found {self.low:g} and {self.high:g}")
        return self


class BinnedRegressionTask(ScalarTask):
    """Logits (B, bins) against a scalar (B,) in the target's unit; a target that is not finite is unknown.

    A target becomes a distribution over the bins: the two bins around it, so weighted that the expectation is the
    target, or with `sigma` a Gaussian around it. One outside [low, high] counts as the nearer end in the loss, and as
    it is in the metrics, which are of the expectation. Losses: `cross_entropy` against that distribution;
    `cross_entropy_l1`, to which is added `expectation_weight` |expectation - target| in standard deviations of the
    target.
    """

    options: BinnedRegressionOptions
    Options = BinnedRegressionOptions
    usual = False
    losses = ("cross_entropy", "cross_entropy_l1")
    meaning = (
        "score (logit) of each bin from low to high; the value is the mean of the bins' values under "
        "the softmax"
    )
    values = "logits"
    axis = "bin"
    option_losses: ClassVar[Mapping[str, Sequence[str]]] = {"expectation_weight": ("cross_entropy_l1",)}
    distillation = "softmax"

    @property
    def channels(self) -> int:
        return self.options.bins

    def centers(self, device: torch.device | None = None) -> Tensor:
        """The bins' values in the target's unit, float32 (bins,)."""
        import torch

        return torch.linspace(self.options.low, self.options.high, self.options.bins, device=device)

    def distribution(self, target: Tensor) -> Tensor:
        """The soft target (B, bins) of values (B,): rows of shares that add up to 1."""
        import torch

        from compactmtl.tasks.losses import at_least_float32

        low, high, bins = self.options.low, self.options.high, self.options.bins
        place = (at_least_float32(target).clamp(low, high)[:, None] - low) / (high - low) * (bins - 1)
        distance = place - torch.arange(bins, device=target.device)
        if self.options.sigma is None:
            return (1 - distance.abs()).clamp(min=0)
        width = self.options.sigma / (high - low) * (bins - 1)
        return (-0.5 * (distance / width).square()).softmax(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        from compactmtl.tasks.losses import at_least_float32, masked_mean

        known = self.known(target)
        # Masked before the arithmetic: a NaN target would make a NaN gradient.
        target = target.where(known, target.new_full((), self.options.low))
        values = -(self.distribution(target) * at_least_float32(output).log_softmax(1)).sum(1)
        if self.loss_name == "cross_entropy_l1":
            within = target.clamp(self.options.low, self.options.high)
            error = (self.decode(output) - within).abs() / self.spec.std
            values = values + self.options.expectation_weight * error
        return masked_mean(values, known)

    def decode(self, output: Tensor) -> Tensor:
        """The expected value (B,) in the target's unit."""
        from compactmtl.tasks.losses import at_least_float32

        # no matrix product: autocast would round it to half precision
        return (at_least_float32(output).softmax(1) * self.centers(output.device)).sum(1)

    @property
    def decoding(self) -> Decoding:
        return Decoding(
            op="expectation",
            how="take the softmax along axis 1, multiply it by `centers` and add up",
            gives=f"{self.name} {self.in_unit}",
            centers=tuple(float(one) for one in self._centers()),
        )

    def _centers(self) -> Array:
        """As `centers`, in numpy."""
        return np.linspace(self.options.low, self.options.high, self.options.bins, dtype=np.float32)

    def decode_array(self, output: Array) -> Array:
        centers = self._centers()
        expected: Array = (softmax(output.astype(np.float32), 1) * centers).sum(1)
        return expected
