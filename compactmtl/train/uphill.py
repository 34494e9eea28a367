"""Sharpness-aware minimization as a part of the step: the gradient is taken a second time at weights moved uphill."""

from __future__ import annotations

from compactmtl.balancing import still_statistics
from compactmtl.balancing.sam import uphill
from compactmtl.config.balancing import SamConfig
from compactmtl.data.base import Batch
from compactmtl.train.part import Part, Setup, Training
from compactmtl.train.regularize import check_scaling


class Uphill(Part):
    """Replaces the gradients by those at the moved weights; neither balancer nor running statistics learn from them."""

    def __init__(self, config: SamConfig) -> None:
        self._config = config

    def after_backward(self, training: Training, batch: Batch) -> None:
        model, config = training.model, self._config
        moved = uphill(model.parameters(), config.rho, adaptive=config.adaptive)
        with moved, still_statistics(model):
            training.repeat(batch)


def build_uphill(setup: Setup) -> Uphill | None:
    """The recipe's `regularization.sam`, or None. Raises ConfigError where float16 scales the loss."""
    config = setup.recipe.regularization.sam
    if config is None:
        return None
    check_scaling(setup.recipe, "sam")
    return Uphill(config)
