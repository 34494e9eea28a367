"""DB-MTL: log-losses, and gradients brought to the largest norm. Source: arXiv:2308.12029, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from compactmtl.balancing.base import TaskInfo, check_positive
from compactmtl.balancing.gradient import At, Direction, GradientBalancer
from compactmtl.balancing.jacobian import Jacobian
from compactmtl.balancing.options import NotNegative
from compactmtl.config.schema import Frozen
from compactmtl.errors import ConfigError


class DBMTL(GradientBalancer):
    """max_t ‖ĝ_t‖ · Σ ĝ_t/‖ĝ_t‖, where ĝ_t is a moving average of the gradients of log L_t.

    The heads follow the gradients of log L_t. Raises ConfigError for a memory of gradients by features, which each
    batch has others of.
    """

    class Options(Frozen):
        """Memory of the gradients: step k keeps β/k^σ of it."""

        beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
        sigma: NotNegative = 0.5

    options: Options

    fixed = True

    def __init__(
        self,
        tasks: Mapping[str, TaskInfo],
        options: Mapping[str, Any] | None = None,
        at: At = "shared_parameters",
    ) -> None:
        super().__init__(tasks, options, at)
        if at == "features" and self.options.beta > 0:
            raise ConfigError(
                "balancing db_mtl remembers gradients, and features are others in each batch",
                "set balancing.options.beta to 0, or remove balancing.at",
            )
        self._steps = 0
        self._average: tuple[Tensor, ...] = ()

    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        values = torch.tensor(list(losses.values()), dtype=torch.float64)
        check_positive("db_mtl", values, losses)
        heads = 1 / values
        averaged = self._averaged(jacobian, heads)
        norms = averaged.gramian().diagonal().sqrt()
        factors = norms.max() / norms
        return Direction(averaged.combine(factors), factors * heads, heads=heads)

    def _averaged(self, jacobian: Jacobian, heads: Tensor) -> Jacobian:
        self._steps += 1
        logarithmic = tuple(row * _column(heads, row) for row in jacobian.rows)  # ∇ log L = ∇L / L
        if self.options.beta:
            kept = self.options.beta / self._steps**self.options.sigma
            # the first step's memory is of zeros, as in the authors' code
            earlier = self._average or tuple(torch.zeros_like(row) for row in logarithmic)
            logarithmic = tuple(
                row.lerp(old.to(row.device), kept) for row, old in zip(logarithmic, earlier, strict=True)
            )
            self._average = logarithmic
        return Jacobian(jacobian.tasks, logarithmic, jacobian.split)

    def get_extra_state(self) -> dict[str, Any]:
        """Steps, and the moving averages of the gradients."""
        return {"steps": self._steps, "average": list(self._average)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self._steps, self._average = state["steps"], tuple(state["average"])


def _column(values: Tensor, row: Tensor) -> Tensor:
    return values.to(row.device, row.dtype).view(-1, *[1] * (row.ndim - 1))
