"""GradNorm: weights under which all tasks' gradients learn at one pace. Source: arXiv:1711.02257, algorithm 1."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compactmtl.balancing.base import TaskInfo
from compactmtl.balancing.gradient import At, Direction, GradientBalancer
from compactmtl.balancing.jacobian import Jacobian
from compactmtl.balancing.options import NotNegative
from compactmtl.config.schema import Frozen, Positive


class GradNorm(GradientBalancer):
    """Σ w_t·g_t, where w is learned and adds up to T.

    The norm of w_t·g_t is drawn to the mean norm times r_t^α, r_t the share of its first loss that task t still has,
    in proportion to the others'. The paper measures norms at the last shared layer; `at` says where they are here.
    """

    class Options(Frozen):
        """`alpha`: how strongly slow tasks are pulled along; `lr`: of the weights' own Adam."""

        alpha: NotNegative = 1.5
        lr: Positive = 0.025

    options: Options

    fixed = True

    def __init__(
        self,
        tasks: Mapping[str, TaskInfo],
        options: Mapping[str, Any] | None = None,
        at: At = "shared_parameters",
    ) -> None:
        super().__init__(tasks, options, at)
        # float64 on the CPU and outside of parameters(): the weights have an optimizer of their own
        self._weights = torch.ones(len(self.weights), dtype=torch.float64, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._weights], lr=self.options.lr)
        self._first: Tensor | None = None  # losses of the first step

    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        factors = self._weights.detach().clone()
        values = torch.tensor(list(losses.values()), dtype=torch.float64)
        if self._first is None:
            self._first = values.clone()
        self._learn(gramian.diagonal().sqrt(), values / self._first)
        return Direction(jacobian.combine(factors), factors, heads=factors)

    def _learn(self, norms: Tensor, remaining: Tensor) -> None:
        """One step on Σ |w_t·‖g_t‖ − target_t|, the targets being constants."""
        weighed = self._weights * norms
        target = (weighed.mean() * (remaining / remaining.mean()) ** self.options.alpha).detach()
        self._optimizer.zero_grad()
        (weighed - target).abs().sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            # a weight below 0 would climb its loss; the paper only renormalizes
            self._weights.clamp_(min=1e-3)
            self._weights *= len(self._weights) / self._weights.sum()

    def get_extra_state(self) -> dict[str, Any]:
        """Weights, their optimizer's state, and the first losses."""
        return {
            "weights": self._weights.detach().clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),  # which has its own tensors
            "first": self._first,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        with torch.no_grad():
            self._weights.copy_(state["weights"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._first = state["first"]
