"""The group minimax concave penalty, which leaves large groups alone. Sources: doi:10.1214/09-AOS729, doi:10.1214/12-STS392."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compactmtl.config.schema import Frozen
from compactmtl.config.sparsity import AboveZero
from compactmtl.errors import ConfigError
from compactmtl.sparsity.grouped_tensor import BoundFamily, Scratch
from compactmtl.sparsity.groups import ChannelGroups
from compactmtl.sparsity.penalty import AskingPenalty, per_group, root
from compactmtl.sparsity.prox import Metric, firm_prox_asking
from compactmtl.sparsity.questions import Asking


class GroupMCP(AskingPenalty):
    """λ Σ √d (r − r²/2κ) for the norm r of a group up to its knee κ, and constant beyond: large groups are not biased.

    κ = knee·√d, so `knee` is the root mean square of a group's elements at which its pull ends. The γ of the
    literature is knee/λ. It is not convex: a step of rate η has one solution where ηλ/knee is below the metric D (1
    for SGD), and takes the penalty's tangent at the group's norm where it is not.
    """

    class Options(Frozen):
        """Root mean square of a group's weights from which the penalty leaves it alone."""

        knee: AboveZero = 0.1

    def __init__(self, groups: ChannelGroups, strength: float, knee: float) -> None:
        """Raises ConfigError where `strength` is negative, `knee` is not positive, or either is not finite."""
        super().__init__(groups, strength)
        if not (math.isfinite(knee) and knee > 0):
            raise ConfigError(
                f"the penalty's knee is {knee}", "a root mean square of weights above 0, such as 0.05"
            )
        self.knee = float(knee)

    def of(self, family: BoundFamily) -> Tensor:
        scale = math.sqrt(family.elements)
        norms = torch.clamp_max(root(family.squares()), self.knee * scale)
        return scale * (norms - norms.square() / (2 * self.knee * scale))

    def pull(self, family: BoundFamily, norms: Tensor) -> Tensor:
        scale = math.sqrt(family.elements)
        return scale * torch.clamp_min(1 - norms / (self.knee * scale), 0.0)

    def asking(
        self,
        family: BoundFamily,
        rate: float,
        metric: Sequence[Metric] | None,
        exempt: Tensor | None = None,
        scratch: Scratch | None = None,
    ) -> Asking[Tensor]:
        scale = math.sqrt(family.elements)
        slopes = per_group(family, self.strength * scale, exempt)
        knees = torch.full_like(slopes, self.knee * scale)
        return (yield from firm_prox_asking(family.tensors, metric, rate, slopes, knees, scratch))
