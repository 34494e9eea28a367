"""Gradients of several task losses by the same tensors, and what methods read of them.

Legend: T tasks, n elements of all shared tensors together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compactmtl.distributed.processes import average, distributed, sum_over, world


@dataclass(frozen=True)
class Jacobian:
    """`rows[p]` is (T, *shape of tensor p): the gradient of each task's loss by it, in the order of `tasks`.

    `split` says that each process holds the columns of its own samples (features) rather than all columns (parameters).
    """

    tasks: tuple[str, ...]
    rows: tuple[Tensor, ...]
    split: bool = False

    def gramian(self) -> Tensor:
        """Inner products of the tasks' gradients, float64 (T, T) on the CPU, over all processes."""
        count = len(self.tasks)
        device = self.rows[0].device
        total = torch.zeros(count, count, dtype=torch.float64, device=device)
        for row in self.rows:
            flat = row.reshape(count, -1)
            total += (flat @ flat.T).double()
        if self.split and distributed():
            sum_over([total])
        total = (total + total.T).cpu() / 2
        return total

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Σ_t weights[t] · gradient of task t, by shared tensor."""
        kinds = {(row.device, row.dtype) for row in self.rows}
        placed = {kind: weights.to(*kind) for kind in kinds}  # one copy to a GPU, not one a tensor
        return [torch.tensordot(placed[row.device, row.dtype], row, dims=1) for row in self.rows]

    def matrix(self) -> Tensor:
        """All gradients side by side, (T, n)."""
        return torch.cat([row.reshape(len(self.tasks), -1) for row in self.rows], dim=1)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """A vector (n,) cut into the shapes of the shared tensors."""
        sizes = [row[0].numel() for row in self.rows]
        return [part.view_as(row[0]) for part, row in zip(vector.split(sizes), self.rows, strict=True)]  # type: ignore[no-untyped-call]

    def only(self, positions: Sequence[int]) -> Jacobian:
        """The tasks at these positions alone."""
        chosen = torch.as_tensor(positions)
        return Jacobian(
            tuple(self.tasks[index] for index in positions),
            tuple(row[chosen.to(row.device)] for row in self.rows),
            self.split,
        )


@dataclass(frozen=True)
class TaskGradients:
    """The jacobian by the shared tensors, and each task's gradients by its own parameters."""

    jacobian: Jacobian
    own: Mapping[str, list[Tensor]]


def task_gradients(
    losses: Mapping[str, Tensor],
    shared: Sequence[Tensor],
    own: Mapping[str, Sequence[Tensor]],
    *,
    split: bool,
    scale: float = 1.0,
    retain: bool = False,
) -> TaskGradients:
    """One backward pass a task, from its loss to `shared` and to the tensors that are its `own`.

    The losses are multiplied by `scale`, and so are the gradients of `own`; the jacobian is divided by it again. Where
    several processes train together, gradients by parameters are averaged over them. `retain` keeps the graph.
    """
    count, last = len(losses), list(losses)[-1]
    divisor = scale * (world() if split else 1)
    rows: list[Tensor] = []
    own_gradients: dict[str, list[Tensor]] = {}
    for index, (task, loss) in enumerate(losses.items()):
        inputs = [*shared, *own[task]]
        gradients = torch.autograd.grad(
            loss * scale, inputs, retain_graph=retain or task != last, allow_unused=True
        )
        if not rows:  # features may be of half precision
            rows = [x.new_zeros((count, *x.shape), dtype=at_least_float32(x.dtype)) for x in shared]
        for row, gradient in zip(rows, gradients, strict=False):
            if gradient is not None:
                row[index] = gradient
                if divisor != 1:  # in the row's precision: half precision would lose what the scale had saved
                    row[index] /= divisor
        own_gradients[task] = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(own[task], gradients[len(shared) :], strict=True)
        ]
        del gradients  # one task's gradients at a time beside the jacobian
    if distributed():
        average(
            [*([] if split else rows), *(one for gradients in own_gradients.values() for one in gradients)]
        )
    return TaskGradients(Jacobian(tuple(losses), tuple(rows), split), own_gradients)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type, or float32 where it is narrower."""
    return torch.promote_types(dtype, torch.float32)
