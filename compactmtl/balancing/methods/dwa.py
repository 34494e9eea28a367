"""DWA, weights by the rate at which each loss fell over the last two epochs. Source: arXiv:1803.10704, eq. 7."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compactmtl.balancing.base import Balancer, TaskInfo
from compactmtl.config.schema import Frozen, Positive


class DWA(Balancer):
    """Σ T·softmax(r/temperature)_t·L_t of T tasks, where r_t is the mean loss of the last epoch over that of the one before.

    A mean is over the batches that know something of the task, whose loss is not 0; TorchJD's is over all batches. A
    task of which an epoch knows nothing keeps its mean, and one without two means has a rate of 1.
    """

    class Options(Frozen):
        """`temperature`: a larger one makes the weights more alike."""

        temperature: Positive = 2.0

    options: Options
    sums: Tensor  # of this epoch's losses (T,), and how many there were
    counts: Tensor
    older: Tensor  # means of two epochs (T,), 0 where there is none yet
    newer: Tensor

    def __init__(self, tasks: Mapping[str, TaskInfo], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tasks, options)
        for name in ("sums", "counts", "older", "newer"):
            self.register_buffer(name, torch.zeros(len(self.weights)))
        self._factors = torch.ones(len(self.weights))

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = self.weighted(losses)
        seen = values.detach()
        self.sums += seen
        self.counts += seen != 0
        rates = torch.where(self.older == 0, 1.0, self.newer / self.older)
        self._factors = len(rates) * (rates / self.options.temperature).softmax(0)
        return (self._factors * values).sum()

    def end_epoch(self) -> None:
        means = self.sums / self.counts.clamp(min=1)
        newest = torch.where(self.counts == 0, self.newer, means)
        self.older = torch.where(self.newer == 0, newest, self.newer)
        self.newer = newest
        self.sums, self.counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module; also of a checkpoint of an earlier version, which has what TorchJD remembered."""
        before = state_dict.get("_extra_state")
        if before is not None:
            means = before["._previous_averages"] or [torch.zeros_like(self.newer)]
            sums = before["._loss_sum"]
            state_dict = {
                "sums": torch.zeros_like(self.sums) if sums is None else sums,
                "counts": torch.full_like(self.counts, before["._n_batches"]),
                "older": means[0],
                "newer": means[-1],
            }
        return super().load_state_dict(state_dict, strict, assign)

    def log(self) -> dict[str, float]:
        """The factor by which each task's loss counted in the last step."""
        pairs = zip(self.weights.items(), self._factors.tolist(), strict=True)
        return {task: factor * weight for (task, weight), factor in pairs}
