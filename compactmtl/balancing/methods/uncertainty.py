"""Losses weighed by learned homoscedastic uncertainty. Source: arXiv:1705.07115, eqs. 7 and 10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.balancing.base import Balancer, TaskInfo
from compactmtl.balancing.jacobian import at_least_float32


class Uncertainty(Balancer):
    """Σ w_t·(c_t·exp(−s_t)·L_t + s_t/2), where s_t = log σ_t² is learned and starts at 0.

    c_t, each task's `uncertainty_scale`, is 1/2 for a real quantity (Gaussian likelihood) and 1 for a class, as in the
    paper. The loss may be negative. Each s_t is a parameter, in the order of the tasks in `log_variances` (T,); it
    must be in the optimizer, without weight decay, or the weights stay at their start. A batch that knows nothing of a
    task (its loss is 0) leaves s_t alone.
    """

    scales: Tensor
    fixed: Tensor

    def __init__(self, tasks: Mapping[str, TaskInfo], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tasks, options)
        self.log_variances = nn.Parameter(torch.zeros(len(self.weights)))
        scales = [info.uncertainty_scale for info in tasks.values()]
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        self.register_buffer("fixed", torch.tensor(list(self.weights.values())), persistent=False)

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        # float32 at least: under autocast a half-precision sum would round s_t away.
        stacked = torch.stack(
            [losses[task].to(at_least_float32(losses[task].dtype)) for task in self.weights]
        )
        terms = self.scales * torch.exp(-self.log_variances) * stacked + self.log_variances / 2
        return (self.fixed * torch.where(stacked == 0, stacked, terms)).sum()

    def log(self) -> dict[str, float]:
        factors = self.fixed * self.scales * torch.exp(-self.log_variances.detach())
        return dict(zip(self.weights, factors.tolist(), strict=True))
