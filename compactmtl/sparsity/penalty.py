"""Penalties on channel groups: group lasso, sparse group lasso, group MCP. Source: arXiv:2308.12114 for the first."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.prox import Metric, adaptive_prox_, firm_prox_, prox_, soft_threshold_
from compactmtl.sparsity.slices import BoundFamily, Scratch, wide


class Penalty(ABC):
    """λ times a sum over groups. It is minimized by `ProximalStep`, once: do not add `value()` to the loss as well.

    `strength` (λ) may be set at any time, for a schedule. √d of a group's d elements weighs its norm; `factors`, one
    a family, weigh whole families besides.
    """

    def __init__(self, groups: ChannelGroups, strength: float) -> None:
        """Raises ConfigError where `strength` is negative or not finite."""
        self.groups = groups
        self.strength = strength
        self.factors = [1.0] * len(groups)

    @property
    def strength(self) -> float:
        """λ."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = _checked("strength", value, "λ is a finite number >= 0, such as 1e-5")

    def value(self, model: nn.Module | None = None) -> Tensor:
        """The penalty as a scalar with a graph; its gradient at a zero group is taken as 0.

        `model` reads the tensors from another model of the same parameter names than the groups' own.
        """
        groups = self.groups if model is None else self.groups.in_model(model)
        terms = [
            factor * self.of(family).sum() for factor, family in zip(self.factors, groups.bound, strict=True)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term.to(total)
        return self.strength * total

    def group_norms(self) -> list[Tensor]:
        """‖w_g‖₂ of every group, one tensor (n,) a family."""
        with torch.no_grad():
            return [family.norms() for family in self.groups.bound]

    @abstractmethod
    def of(self, family: BoundFamily) -> Tensor:
        """The penalty of each group for λ = 1, (n,), with a graph."""

    @abstractmethod
    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        """The derivative by the norm for λ = 1 of groups that have these `norms` (n,), (n,)."""

    @abstractmethod
    def shrink_(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        spared: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Apply rate times the penalty's proximal operator in place in the metric (1 where there is none).

        `spared` groups, bool (n,), are left alone. Returns whether each group is now zero, bool (n,).
        """


class GroupLasso(Penalty):
    """The group lasso, λ Σ √d‖w_g‖, over groups of d elements. Source: arXiv:2308.12114."""

    def of(self, family: BoundFamily) -> Tensor:
        return math.sqrt(family.elements) * _root(family.squares())

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        return torch.full_like(norms, math.sqrt(family.elements))

    def shrink_(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        spared: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        thresholds = _each(family, rate * self.strength * math.sqrt(family.elements), spared)
        if metric is None:
            return prox_(family.slices, thresholds)
        return adaptive_prox_(family.slices, metric, thresholds, scratch)


class SparseGroupLasso(Penalty):
    """λ Σ (l1·‖w_g‖₁ + l2·√d‖w_g‖): single elements, and whole groups, each part scaled by itself."""

    def __init__(self, groups: ChannelGroups, strength: float, l1: float = 1.0, l2: float = 1.0) -> None:
        """Raises ConfigError where a number is negative or not finite, or both parts are 0."""
        super().__init__(groups, strength)
        self.l1 = _checked("l1", l1, "the scale of the l1 part is a finite number >= 0")
        self.l2 = _checked("l2", l2, "the scale of the l2 part is a finite number >= 0")
        if not l1 and not l2:
            raise ConfigError("both parts of the penalty are 0", "give l1 or l2 a scale above 0")

    def of(self, family: BoundFamily) -> Tensor:
        found = self.l2 * math.sqrt(family.elements) * _root(family.squares())
        for s in family.slices:
            found = found + self.l1 * s.sums(wide(s.parameter).abs()).to(found)
        return found

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        # at most: a group whose elements are all alike has the largest l1 norm
        return torch.full_like(norms, (self.l1 + self.l2) * math.sqrt(family.elements))

    def shrink_(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        spared: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        single = _each(family, rate * self.strength * self.l1, spared)
        whole = _each(family, rate * self.strength * self.l2 * math.sqrt(family.elements), spared)
        soft_threshold_(family.slices, metric, single)
        if metric is None:
            return prox_(family.slices, whole)
        return adaptive_prox_(family.slices, metric, whole, scratch)


class GroupMCP(Penalty):
    """λ Σ √d (r − r²/2κ) for the norm r of a group up to its knee κ, and constant beyond: large groups are not biased.

    κ = knee·√d, so `knee` is the root mean square of a group's elements at which its pull ends. The γ of the
    literature is knee/λ. It is not convex: a step of rate η has one solution where ηλ/knee is below the metric D (1
    for SGD), and takes the penalty's tangent at the group's norm where it is not.
    """

    def __init__(self, groups: ChannelGroups, strength: float, knee: float) -> None:
        """Raises ConfigError where `strength` is negative, `knee` is not positive, or either is not finite."""
        super().__init__(groups, strength)
        if not (math.isfinite(knee) and knee > 0):
            raise ConfigError(
                f"the penalty's knee is {knee}", "a root mean square of weights above 0, such as 0.05"
            )
        self.knee = float(knee)

    def of(self, family: BoundFamily) -> Tensor:
        root = math.sqrt(family.elements)
        norms = torch.clamp_max(_root(family.squares()), self.knee * root)
        return root * (norms - norms.square() / (2 * self.knee * root))

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        root = math.sqrt(family.elements)
        return root * torch.clamp_min(1 - norms / (self.knee * root), 0.0)

    def shrink_(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        spared: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        root = math.sqrt(family.elements)
        slopes = _each(family, self.strength * root, spared)
        knees = torch.full_like(slopes, self.knee * root)
        return firm_prox_(family.slices, metric, rate, slopes, knees, scratch)


def _each(family: BoundFamily, value: float, spared: Tensor | None) -> Tensor:
    device = family.slices[0].parameter.device
    values = torch.full((family.size,), value, dtype=torch.float64, device=device)
    return values if spared is None else torch.where(spared.to(device), 0.0, values)


def _checked(name: str, value: float, hint: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"the penalty's {name} is {value}", hint)
    return float(value)


def _root(squares: Tensor) -> Tensor:
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
