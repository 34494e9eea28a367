"""The sparse group lasso: single elements and whole groups. Source: arXiv:1001.0736."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import model_validator
from torch import Tensor

from compactmtl.config.schema import Frozen
from compactmtl.config.sparsity import NonNegative
from compactmtl.config.words import key
from compactmtl.errors import ConfigError
from compactmtl.sparsity.grouped_tensor import BoundFamily, Scratch, at_least_float32
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.penalty import AskingPenalty, checked, per_group, root
from compactmtl.sparsity.prox import Metric, adaptive_prox_asking, prox_asking, soft_threshold_
from compactmtl.sparsity.questions import Asking


class SparseGroupLasso(AskingPenalty):
    """λ Σ (l1·‖w_g‖₁ + l2·√d‖w_g‖): single elements, and whole groups, each part scaled by itself."""

    class Options(Frozen):
        """Scales of the part on single elements and of the part on whole groups."""

        l1: NonNegative = 1.0
        l2: NonNegative = 1.0

        @model_validator(mode="after")
        def _one_part(self) -> SparseGroupLasso.Options:
            if not self.l1 and not self.l2:
                raise ValueError(
                    f"{key('sparsity.l1')} and {key('sparsity.l2')} are both 0: there is no penalty"
                )
            return self

    def __init__(self, groups: ChannelGroups, strength: float, l1: float = 1.0, l2: float = 1.0) -> None:
        """Raises ConfigError where a number is negative or not finite, or both parts are 0."""
        super().__init__(groups, strength)
        self.l1 = checked("l1", l1, "the scale of the l1 part is a finite number >= 0")
        self.l2 = checked("l2", l2, "the scale of the l2 part is a finite number >= 0")
        if not l1 and not l2:
            raise ConfigError("both parts of the penalty are 0", "give l1 or l2 a scale above 0")

    def of(self, family: BoundFamily) -> Tensor:
        values = self.l2 * math.sqrt(family.elements) * root(family.squares())
        for s in family.tensors:
            values = values + self.l1 * s.sums(at_least_float32(s.parameter).abs()).to(values)
        return values

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        # at most: a group whose elements are all alike has the largest l1 norm
        return torch.full_like(norms, (self.l1 + self.l2) * math.sqrt(family.elements))

    def asking(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Asking[Tensor]:
        single = per_group(family, rate * self.strength * self.l1, exempt)
        whole = per_group(family, rate * self.strength * self.l2 * math.sqrt(family.elements), exempt)
        soft_threshold_(family.tensors, metric, single)
        if metric is None:
            return (yield from prox_asking(family.tensors, whole))
        return (yield from adaptive_prox_asking(family.tensors, metric, whole, scratch))
