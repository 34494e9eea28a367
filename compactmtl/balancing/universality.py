"""How far a random head on frozen features is from the best one: what universality is measured by.

Source: arXiv:2409.16651, theorem 1. Of a loss that is convex in the head, L(ψ) − L(ψ*) is at most ‖∇_ψ L‖·‖ψ − ψ*‖.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compactmtl.balancing.dgr import DummyGradientNorm
from compactmtl.balancing.dummies import random_head, template_of

Loss = Callable[[Tensor, Tensor], Tensor]
EPOCHS = 60
BATCH = 256
RATE = 1e-2


@dataclass(frozen=True)
class LossGap:
    """Losses of heads of one architecture on the features of a split.

    `optimal` is of the best head that was found, `arbitrary` the mean over random heads and `spread` its standard
    deviation, `gradient_norm` the mean norm of the loss's gradient by the random heads, `distance` their mean distance
    from the best one.
    """

    optimal: float
    arbitrary: float
    spread: float
    gradient_norm: float
    distance: float

    @property
    def gap(self) -> float:
        return self.arbitrary - self.optimal


def loss_gap(
    head: nn.Module,
    loss: Loss,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    dummies: int = 10,
    seed: int = 0,
) -> LossGap:
    """The gap on `val` between random heads and the best one for `train`, both of the architecture of `head`.

    A split is features (N, C) and targets. The best head is fitted on nine tenths of `train` with Adam, once from
    `head` and once from random weights, and of all epochs the one is taken that is best on the last tenth: the loss in
    question is the expected one, and a head that is fitted to the end has overfitted.
    """
    starts = [head, random_head(head, "optimal", 0, seed)]
    best, _ = min((_fit(start, loss, train, seed) for start in starts), key=lambda fitted: fitted[1])
    others = [random_head(head, "probe", number, seed) for number in range(dummies)]
    values = torch.tensor([_value(other, loss, val) for other in others], dtype=torch.float64)
    with torch.no_grad():
        norm = DummyGradientNorm(
            {"probe": head}, {"probe": loss}, dummies=dummies, seed=seed, norm="plain", chunk=1
        )(val[0], {"probe": val[1]})
    return LossGap(
        optimal=_value(best, loss, val),
        arbitrary=float(values.mean()),
        spread=float(values.std(correction=0)),
        gradient_norm=float(norm),
        distance=sum(_distance(other, best) for other in others) / dummies,
    )


def _fit(head: nn.Module, loss: Loss, split: tuple[Tensor, Tensor], seed: int) -> tuple[nn.Module, float]:
    """A copy of `head` trained on a split, and its loss on the tenth that was set aside; the seed decides the order."""
    fitted = template_of(head).requires_grad_(True)
    features, targets = split
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    aside, rest = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    optimizer = torch.optim.Adam(fitted.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    best, state = math.inf, copy.deepcopy(fitted.state_dict())
    for epoch in range(EPOCHS + 1):
        value = _value(fitted, loss, (features[aside], targets[aside]))
        if value < best:
            best, state = value, copy.deepcopy(fitted.state_dict())
        if epoch == EPOCHS:
            break
        for part in rest[torch.randperm(len(rest), generator=generator)].split(BATCH):  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
            loss(fitted(features[part]), targets[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    fitted.load_state_dict(state)
    return fitted, best


def _value(head: nn.Module, loss: Loss, split: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(loss(template_of(head)(split[0]), split[1]))


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(torch.stack([(p - q).detach().square().sum() for p, q in pairs]).sum().sqrt())
