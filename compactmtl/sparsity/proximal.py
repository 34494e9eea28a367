"""The proximal step after an optimizer's step. Source: arXiv:2308.12114, with the metric of the step itself."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from compactmtl.errors import ArtifactError, TrainingError
from compactmtl.sparsity import questions
from compactmtl.sparsity.grouped_tensor import BoundFamily, Scratch, waves
from compactmtl.sparsity.optimizer import OptimizerView
from compactmtl.sparsity.penalty import Penalty
from compactmtl.sparsity.prox import Metric
from compactmtl.sparsity.questions import Asking, answered, answered_together, read
from compactmtl.sparsity.saved import RESUME, check_state

TINY = 1e-30  # an element this small is set to zero
FLUSH_EVERY = 4  # steps
_RENAMED = "ProximalStep.spared is now ProximalStep.exempt"


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

    Where Adam's second moment is near zero an element shrinks by orders of magnitude a step; every few steps elements
    below 1e-30 are set to zero, because arithmetic on subnormal numbers is slow.

    On a GPU all families are shrunk together, so that the host waits a few times a step however many groups there are; the
    intermediate tensors then take up to three times the memory of the grouped tensors in float32.

    Groups flagged in `exempt`, one bool tensor (n,) a family, are not shrunk (`spared` is its deprecated name).
    """

    def __init__(self, optimizer: Optimizer, penalty: Penalty) -> None:
        """Raises ConfigError for other optimizers, and for grouped tensors outside it or with weight decay."""
        self.optimizer = optimizer
        self.penalty = penalty
        self._families = penalty.groups.bound
        self._view = OptimizerView(optimizer, [s for family in self._families for s in family.tensors])
        self._scratch = Scratch()
        self._waves = waves(self._families)
        self._count = 0
        self.exempt: list[Tensor] | None = None
        with torch.no_grad():
            self._dead = [family.dead_at_first() for family in self._families]

    @property
    def _on_host(self) -> bool:
        return all(questions.on_host(s.parameter.device) for family in self._families for s in family.tensors)

    @property
    def dead(self) -> list[Tensor]:
        """Which groups the last step left at zero, bool (n,) a family."""
        return self._dead

    @property
    def spared(self) -> list[Tensor] | None:
        """Deprecated: `exempt`."""
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        return self.exempt

    @spared.setter
    def spared(self, flags: list[Tensor] | None) -> None:
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        self.exempt = flags

    @torch.no_grad()
    def step(self) -> None:
        """Apply the proximal operator of the penalty once, in place. Call it after `optimizer.step()`.

        Does nothing before the first step of the optimizer. Raises TrainingError where the optimizer's step left out a grouped
        tensor, or a grouped tensor is not finite.
        """
        if self.penalty.strength == 0 or not self.started:
            return
        self._count += 1
        self._view.read_steps()
        if self._on_host:
            for index, family in enumerate(self._families):
                self._scratch.clear()
                answered(self._family_step(index, family))
            return
        for wave in self._waves:
            self._scratch.clear()
            answered_together([self._family_step(index, self._families[index]) for index in wave])

    def _family_step(self, index: int, family: BoundFamily) -> Asking[None]:
        rate, metric = self._metric(family)
        if rate == 0:
            return
        exempt = None if self.exempt is None else self.exempt[index]
        shrink = self.penalty.asking if self.penalty.asks else partial(Penalty.asking, self.penalty)
        factor = self.penalty.factors[index]
        dead = yield from shrink(family, rate * factor, metric, exempt, self._scratch)
        fresh = dead & ~self._dead[index].to(dead.device)
        (some_fresh,) = yield fresh.any()[None]
        if some_fresh:
            self._forget(index, fresh)
        self._dead[index] = dead
        if self._count % FLUSH_EVERY == 0:
            for s in family.tensors:
                s.parameter.masked_fill_(s.parameter.abs() < TINY, 0.0)

    @torch.no_grad()
    def hold(self, dead: list[Tensor] | None = None) -> None:
        """Set groups to exactly zero: those flagged, bool (n,) a family, or those that are dead already."""
        for index, family in enumerate(self._families):
            flags = self._dead[index] if dead is None else dead[index].to(self._dead[index].device)
            for s in family.tensors:
                s.zero_(s.parameter, flags)
        if dead is None:
            return  # none is newly dead
        buried = [known | flags.to(known.device) for known, flags in zip(self._dead, dead, strict=True)]
        fresh = [now & ~known for now, known in zip(buried, self._dead, strict=True)]
        for index, some in enumerate(read([one.any()[None] for one in fresh])):
            if some:
                self._forget(index, fresh[index])
        self._dead = buried

    @torch.no_grad()
    def distances(self) -> list[Tensor]:
        """For each group the sum of λ over steps that would bring it to zero were there no gradient, (n,) a family.

        To first order: its norm over the norm that a step takes off for λ = 1. Infinite where nothing pulls.
        """
        distances = []
        self._view.read_steps()
        for factor, family in zip(self.penalty.factors, self._families, strict=True):
            self._scratch.clear()
            rate, metric = self._metric(family)
            rate *= factor
            norms = family.norms()
            slow = torch.ones_like(norms)  # mean of 1/D
            if metric is not None:
                parts = [
                    s.sums(s.parameter.square() / d.on(s)).to(norms) / d.scale
                    for s, d in zip(family.tensors, metric, strict=True)
                ]
                slow = torch.stack(parts).nansum(0) / norms.square()
            pulled = rate * self.penalty.pull(family, norms) * slow
            distances.append(torch.where(norms == 0, 0.0, norms / pulled))
        return distances

    def _forget(self, index: int, groups: Tensor) -> None:
        for s in self._families[index].tensors:
            self._view.forget(s, groups)

    def rebuilt(self) -> ProximalStep:
        """The proximal step of the same optimizer and penalty, whose groups or parameters were replaced."""
        new = ProximalStep(self.optimizer, self.penalty)
        new._count = self._count
        return new

    def state_dict(self) -> dict[str, Any]:
        """λ and which groups are dead: tensors and plain numbers."""
        dead = [flags.cpu() for flags in self._dead]
        return {"strength": self.penalty.strength, "count": self._count, "dead": dead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ArtifactError for a state of other groups, or one that lacks something."""
        check_state(state, ("strength", "count", "dead"), "the proximal step")
        dead: list[Tensor] = list(state["dead"])
        if [len(d) for d in dead] != [family.size for family in self._families]:
            raise ArtifactError("the saved proximal state is of other channel groups", RESUME)
        self.penalty.strength = float(state["strength"])
        self._count = int(state["count"])
        self._dead = [d.to(old.device) for d, old in zip(dead, self._dead, strict=True)]

    @property
    def started(self) -> bool:
        """Whether the optimizer has stepped: a loss scaler may skip the first steps of a run."""
        return any(self._view.stepped(s) for family in self._families for s in family.tensors)

    def _metric(self, family: BoundFamily) -> tuple[float, list[Metric] | None]:
        """The largest rate of a family's tensors, and the metric of the step in units of it (none: 1)."""
        rates = [self._view.rate(s) for s in family.tensors]
        reference = max(rates)
        if reference == 0:
            return 0.0, None
        if min(rates) == 0:
            frozen = family.tensors[rates.index(0)].name
            raise TrainingError(
                f"{frozen} has learning rate 0 and shares channel groups with tensors that train",
                "give all tensors of a channel group a learning rate above 0",
            )
        if self._view.kind == "sgd" and min(rates) == reference:
            return reference, None
        metrics = []
        for s, rate in zip(family.tensors, rates, strict=True):
            metric = self._view.metric(s, self._scratch)
            # Where rates differ, the step's metric is D/lr: take D relative to the largest rate.
            metrics.append(replace(metric, scale=metric.scale * reference / rate))
        return reference, metrics
