"""What a penalty on channel groups is: a value, its derivative, its proximal operator, and its options.

Each penalty is one class in one file of `sparsity/penalties`, whose name is the value of `sparsity.penalty`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from compactmtl.config.schema import Frozen, NoOptions
from compactmtl.errors import ConfigError
from compactmtl.sparsity.grouped_tensor import BoundFamily, Scratch
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.prox import Metric
from compactmtl.sparsity.questions import Asking, answered


class Penalty(ABC):
    """λ times a sum over groups. It is minimized by `ProximalStep`, once: do not add `value()` to the loss as well.

    `strength` (λ) may be set at any time, for a schedule. √d of a group's d elements weighs its norm; `factors`, one
    a family, weigh whole families besides. The fields of `Options` are keyword arguments of the class.
    """

    Options: ClassVar[type[Frozen]] = NoOptions

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
        self._strength = checked("strength", value, "λ is a finite number >= 0, such as 1e-5")

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
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Apply rate times the penalty's proximal operator in place in the metric (1 where there is none).

        `exempt` groups, bool (n,), are left alone. Returns whether each group is now zero, bool (n,).
        """

    def asking(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Asking[Tensor]:
        """`shrink_` as a generator of its questions, see `compactmtl.sparsity.questions`.

        A penalty that overrides it waits for a GPU once for all families together instead of once for each.
        """
        yield from ()
        return self.shrink_(family, rate, metric, exempt, scratch)

    @property
    def asks(self) -> bool:
        """Whether `asking` is of the same class as `shrink_`: a class that overrides only the latter means it."""
        owner = next(one for one in type(self).__mro__ if {"asking", "shrink_"} & vars(one).keys())
        return "asking" in vars(owner)


class AskingPenalty(Penalty):
    """A penalty whose proximal operator is written as `asking`: `shrink_` answers its questions one by one."""

    def shrink_(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Tensor:
        return answered(self.asking(family, rate, metric, exempt, scratch))

    @abstractmethod
    def asking(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Asking[Tensor]: ...


def per_group(family: BoundFamily, value: float, exempt: Tensor | None) -> Tensor:
    """`value` for each group and 0 for the `exempt` ones, float64 (n,)."""
    device = family.tensors[0].parameter.device
    values = torch.full((family.size,), value, dtype=torch.float64, device=device)
    return values if exempt is None else torch.where(exempt.to(device), 0.0, values)


def checked(name: str, value: float, hint: str) -> float:
    """A penalty's number. Raises ConfigError where it is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"the penalty's {name} is {value}", hint)
    return float(value)


def root(squares: Tensor) -> Tensor:
    """The root, whose gradient at 0 is taken as 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
