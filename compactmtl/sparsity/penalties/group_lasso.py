"""The group lasso. Source: arXiv:2308.12114."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compactmtl.sparsity.grouped_tensor import BoundFamily, Scratch
from compactmtl.sparsity.penalty import AskingPenalty, per_group, root
from compactmtl.sparsity.prox import Metric, adaptive_prox_asking, prox_asking
from compactmtl.sparsity.questions import Asking


class GroupLasso(AskingPenalty):
    """λ Σ √d‖w_g‖."""

    def of(self, family: BoundFamily) -> Tensor:
        return math.sqrt(family.elements) * root(family.squares())

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        return torch.full_like(norms, math.sqrt(family.elements))

    def asking(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Asking[Tensor]:
        thresholds = per_group(family, rate * self.strength * math.sqrt(family.elements), exempt)
        if metric is None:
            return (yield from prox_asking(family.tensors, thresholds))
        return (yield from adaptive_prox_asking(family.tensors, metric, thresholds, scratch))
