"""Nash-MTL: the direction on which tasks agree that bargain for their progress. Source: arXiv:2202.01017, eq. 2.

The factors a > 0 solve G a = 1/a, G being the gradients' inner products. The paper's code gets there by a sequence of
approximate convex problems, which give up unseen where gradients are small, as those by features are. They are the
minimum of ½ aᵀGa − Σ log a, which is convex and self-concordant: damped Newton steps always find it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from compactmtl.balancing.base import TaskInfo
from compactmtl.balancing.gradient import At, Direction, GradientBalancer, norms_of
from compactmtl.balancing.jacobian import Jacobian
from compactmtl.balancing.options import NotNegative
from compactmtl.config.schema import Frozen
from compactmtl.distributed.processes import first_process_decides
from compactmtl.errors import TrainingError

# More than float32 gradients leave uncertain of a cosine; it bounds the factors of gradients that are opposite.
RIDGE = 8 * torch.finfo(torch.float32).eps
CLOSE = 1e-8
STEPS = 1000  # about 20 are needed, and 50 where gradients are opposite


class NashMTL(GradientBalancer):
    """Σ a_t·g_t with G a = 1/a, shortened to `max_norm` where it is longer."""

    class Options(Frozen):
        """`max_norm`: largest norm of the direction, 0 for none; `every`: steps between solutions."""

        max_norm: NotNegative = 1.0
        every: Annotated[int, Field(ge=1)] = 1

    options: Options

    def __init__(
        self,
        tasks: Mapping[str, TaskInfo],
        options: Mapping[str, Any] | None = None,
        at: At = "shared_parameters",
    ) -> None:
        super().__init__(tasks, options, at)
        self.fixed = self.options.every > 1
        self._steps = 0
        self._agreed: Tensor | None = None  # the factors of the last solution

    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        if self._agreed is None or self._steps % self.options.every == 0:
            try:
                self._agreed = first_process_decides(bargain(gramian), jacobian.rows[0].device)
            except ArithmeticError as error:
                raise TrainingError(
                    f"balancing nash_mtl finds no agreement: {norms_of(jacobian.tasks, gramian)}",
                    "choose another balancing.name",
                ) from error
        self._steps += 1
        factors = self._agreed
        norm = float(factors @ gramian @ factors) ** 0.5
        if 0 < self.options.max_norm < norm:
            factors = factors * (self.options.max_norm / norm)
        return Direction(jacobian.combine(factors), factors)

    def get_extra_state(self) -> dict[str, Any]:
        """Steps, and the factors of the last solution."""
        return {"steps": self._steps, "agreed": self._agreed}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self._steps, self._agreed = state["steps"], state["agreed"]


def bargain(gramian: Tensor) -> Tensor:
    """The a > 0 (T,) with G a = 1/a, for a gramian (T, T) of float64 whose diagonal is not 0.

    Raises ArithmeticError where it is not found: where `gramian` is none.
    """
    norms = gramian.diagonal().sqrt()
    # a task's scale changes nothing: the factors of unit gradients are the same but for it
    cosines = gramian / torch.outer(norms, norms) + RIDGE * torch.eye(len(norms), dtype=gramian.dtype)
    factors = torch.ones_like(norms)
    for _ in range(STEPS):
        slope = cosines @ factors - 1 / factors
        if float((slope * factors).abs().max()) < CLOSE:
            return factors / norms
        step = torch.linalg.solve(cosines + torch.diag(factors**-2), slope)
        square = float(slope @ step)
        if not square >= 0:
            break
        factors = factors - (step if square < 1 / 16 else step / (1 + math.sqrt(square)))
    raise ArithmeticError("no agreement was found")
