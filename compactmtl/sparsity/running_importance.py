"""What each channel is worth to all tasks together, read from the gradients of training, as a running mean.

The importance of a group is |Σ w·∂L/∂w| over its norms' γ and β, or over all of its tensors where it has no norm: the
first-order change of the loss where the group is zeroed. Source: arXiv:1906.10771, method TE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.errors import TrainingError
from compactmtl.sparsity.grouped_tensor import BoundFamily, GroupedTensor, add, at_least_float32
from compactmtl.sparsity.target import as_values, magnitude


class RunningImportance:
    """The importance of each group as an exponential mean over steps; of kind `magnitude` the size of its weights as it is."""

    def __init__(
        self, families: Sequence[BoundFamily], kind: Literal["taylor", "fisher", "magnitude"], steps: int
    ) -> None:
        """`fisher` takes the mean of squares, and its root. The mean is over about `steps` steps."""
        self._kind, self._memory = kind, 1 - 1 / steps
        self.bind(families)
        self.running = [  # (n,) a family
            torch.zeros(family.size, dtype=torch.float32, device=family.tensors[0].parameter.device)
            for family in families
        ]

    def bind(self, families: Sequence[BoundFamily]) -> None:
        """Read from these families from now on."""
        self._families = families
        self.valued = [family.valued for family in families]

    @torch.no_grad()
    def learn(self) -> None:
        """Add the gradients that are there. Where they are not finite a group's importance stays as it was.

        Raises TrainingError where a gradient is missing.
        """
        if self._kind == "magnitude":
            return
        for family, valued, running in zip(self._families, self.valued, self.running, strict=True):
            worth = add(
                s.sums(at_least_float32(s.parameter) * at_least_float32(_gradient(s))) for s in valued
            ).to(running)
            worth = worth.abs()
            if family.family.branch:  # what its channels are worth one by one: signs would cancel
                worth = worth.sum()[None]
            worth = worth.square() if self._kind == "fisher" else worth
            blend = self._memory * running + (1 - self._memory) * worth
            running.copy_(torch.where(torch.isfinite(worth), blend, running))

    def worth(self) -> list[NDArray[np.float64]]:
        """The importance of each group, (n,) a family, on the host."""
        if self._kind == "magnitude":
            return as_values([magnitude(family) for family in self._families])
        return [np.sqrt(value) if self._kind == "fisher" else value for value in as_values(self.running)]


def _gradient(s: GroupedTensor) -> Tensor:
    if s.parameter.grad is None:
        raise TrainingError(
            f"{s.name} has no gradient, and its channels' importance is read from it",
            "call observe() after backward() and before the gradients are set to None",
        )
    return s.parameter.grad
