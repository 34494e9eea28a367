"""The proximal step after an optimizer's step. Source: arXiv:2308.12114, with the metric of the step itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.errors import ArtifactError, TrainingError
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.penalty import GroupLasso
from compactmtl.sparsity.prox import adaptive_prox_, prox_
from compactmtl.sparsity.slices import BoundFamily


class ProximalStep:
    """Shrinks channel groups after each step of an optimizer.

        optimizer.step()
        proximal.step()

    With SGD a group is scaled by max(0, 1 − ηλ√d/‖w‖), where η is the learning rate, or the rate at which a
    momentum buffer moves the weight, lr·(1 − dampening)/(1 − momentum). With Adam and AdamW the step is
    taken in the metric in which the optimizer stepped, √v̂ + ε with bias correction, so that an element that
    moves slowly also shrinks slowly; see `compactmtl.sparsity.prox`. The learning rates are read at each
    step. The moments of a group are cleared when it dies; it may come back where its gradient says so.
    A tensor of two families (at two dimensions) is shrunk for one after the other.
    """

    def __init__(self, optimizer: Optimizer, penalty: GroupLasso) -> None:
        """Raises ConfigError for other optimizers, and for grouped tensors outside it or with weight decay."""
        self.optimizer = optimizer
        self.penalty = penalty
        self._families = penalty.groups.bound
        self._view = OptimizerView(optimizer, [s for family in self._families for s in family.slices])
        with torch.no_grad():
            self._dead = [family.zeros() for family in self._families]

    @torch.no_grad()
    def step(self) -> None:
        """Apply the proximal operator of the penalty once, in place.

        Does nothing before the optimizer's first step. Raises TrainingError where a grouped tensor was left
        out of the optimizer's step or is not finite.
        """
        if self.penalty.strength == 0 or not self._started():
            return
        for index, family in enumerate(self._families):
            dead = self._shrink(family)
            if dead is None:
                continue
            fresh = dead & ~self._dead[index].to(dead.device)
            if fresh.any():
                for s in family.slices:
                    self._view.forget(s, fresh)
            self._dead[index] = dead

    def state_dict(self) -> dict[str, Any]:
        """λ and which groups are dead: tensors and plain numbers."""
        return {"strength": self.penalty.strength, "dead": [dead.cpu() for dead in self._dead]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups."""
        dead: list[Tensor] = list(state["dead"])
        if [len(d) for d in dead] != [family.size for family in self._families]:
            raise ArtifactError(
                "the saved proximal state is of other channel groups", "resume with the same recipe"
            )
        self.penalty.strength = float(state["strength"])
        self._dead = [d.to(old.device) for d, old in zip(dead, self._dead, strict=True)]

    def _started(self) -> bool:
        # A loss scaler may skip the first steps of a run, before there is any state.
        return any(self._view.stepped(s) for family in self._families for s in family.slices)

    def _shrink(self, family: BoundFamily) -> Tensor | None:
        rates = [self._view.rate(s) for s in family.slices]
        reference = max(rates)
        if reference == 0:
            return None
        if min(rates) == 0:
            frozen = family.slices[rates.index(0)].name
            raise TrainingError(
                f"{frozen} has learning rate 0 and shares channel groups with tensors that train",
                "give all tensors of a channel group a learning rate above 0",
            )
        thresholds = reference * self.penalty.weights(family)
        if self._view.kind == "sgd" and min(rates) == reference:
            return prox_(family.slices, thresholds)
        # Where rates differ, the step's metric is D/lr: take D relative to the largest rate.
        metric = [
            self._view.metric(s).mul_(reference / rate) for s, rate in zip(family.slices, rates, strict=True)
        ]
        return adaptive_prox_(family.slices, metric, thresholds)
