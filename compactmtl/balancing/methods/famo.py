"""FAMO: weights that bring all losses down at one rate. Source: arXiv:2306.03792, algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torchjd import scalarization as jd

from compactmtl.balancing.base import Balancer, TaskInfo, check_positive
from compactmtl.balancing.options import NotNegative, vector
from compactmtl.balancing.torchjd_adapter import dump_famo, famo_logits, load_famo
from compactmtl.config.schema import Frozen, Positive


class Famo(Balancer):
    """Σ z_t·log(L_t) up to a factor, with weights z that follow how much each loss fell in the last step.

    It learns them by itself from `after_step`: they are no parameters of the module, so that no other optimizer moves
    them. Source: arXiv:2306.03792, algorithm 1.
    """

    class Options(Frozen):
        """Of the optimizer that learns the weights; `least`: the least loss of each task, in the order of the tasks."""

        lr: Positive = 0.025
        weight_decay: NotNegative = 1e-3
        least: tuple[float, ...] | None = None

    options: Options
    relooks: ClassVar[bool] = True

    def __init__(self, tasks: Mapping[str, TaskInfo], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tasks, options)
        least = vector(self.options.least)
        self._least = torch.zeros(len(tasks)) if least is None else least
        # in a tuple: a module would be registered, and its weights given to the optimizer
        self._famo = (jd.FAMO(len(tasks), least, self.options.lr, self.options.weight_decay),)

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = self.weighted(losses)
        check_positive("famo", values.detach(), self.weights, self._least.tolist())
        return self._famo[0](values)

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        values = self.weighted(losses).detach()
        check_positive("famo", values, self.weights, self._least.tolist())
        self._famo[0].update(values)

    def log(self) -> dict[str, float]:
        """The weights z; they add up to 1."""
        return dict(zip(self.weights, famo_logits(self._famo[0]).detach().softmax(0).tolist(), strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._famo[0]._apply(fn)  # type: ignore[no-untyped-call]
        self._least = fn(self._least)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """The logits of the weights, their optimizer's state, and the losses that `after_step` compares with."""
        return dump_famo(self._famo[0])

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        load_famo(self._famo[0], state)
