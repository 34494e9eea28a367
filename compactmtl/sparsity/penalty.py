"""The group lasso penalty λ Σ_g √d_g ‖w_g‖₂. Source: arXiv:2308.12114."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.slices import BoundFamily


class GroupLasso:
    """λ times the sum of group norms, each weighed by the square root of its number of elements.

    The penalty is minimized by `ProximalStep`, once; do not add `value()` to the loss as well. `strength`
    (λ) may be set at any time, for a schedule.
    """

    def __init__(self, groups: ChannelGroups, strength: float) -> None:
        """Raises ConfigError where `strength` is negative or not finite."""
        self.groups = groups
        self.strength = strength

    @property
    def strength(self) -> float:
        """λ."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"the penalty's strength is {value}", "λ is a finite number >= 0, such as 1e-5")
        self._strength = float(value)

    def value(self, model: nn.Module | None = None) -> Tensor:
        """The penalty as a scalar with a graph; its gradient at a zero group is taken as 0.

        `model` reads the tensors from another model of the same parameter names than the groups' own.
        """
        groups = self.groups if model is None else self.groups.in_model(model)
        terms = [math.sqrt(family.elements) * _root(family.squares()).sum() for family in groups.bound]
        total = terms[0]
        for term in terms[1:]:
            total = total + term.to(total)
        return self.strength * total

    def group_norms(self) -> list[Tensor]:
        """‖w_g‖₂ of every group, one tensor (n,) a family."""
        with torch.no_grad():
            return [family.norms() for family in self.groups.bound]

    def weights(self, family: BoundFamily) -> Tensor:
        """λ√d_g of each group of `family`, (n,) in float64."""
        return torch.full((family.size,), self.strength * math.sqrt(family.elements), dtype=torch.float64)


def _root(squares: Tensor) -> Tensor:
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
