"""Balancing by gradients: one gradient a task, aggregated into the one that the shared encoder follows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compactmtl.balancing.base import Balancer, TaskInfo
from compactmtl.balancing.jacobian import Jacobian, TaskGradients, task_gradients
from compactmtl.distributed.processes import average, distributed, sum_over, world
from compactmtl.errors import ConfigError, TrainingError

At = Literal["features", "shared_parameters"]


@dataclass(frozen=True)
class Direction:
    """What the encoder follows: one tensor for each shared one; and how it came about.

    `factors` are the factors of the tasks' gradients where the direction is their weighted sum; `heads` the factors of
    the gradients of the tasks' own parameters, where those are not 1.
    """

    shared: list[Tensor]
    factors: Tensor | None = None
    heads: Tensor | None = None


class GradientBalancer(Balancer):
    """A balancer that needs each task's gradient; `balanced_backward` gives them to it.

    `at` "features" compares the gradients by the encoder's output, for one backward pass of the encoder in all;
    "shared_parameters" those by the encoder's parameters, for one pass a task. A task's weight multiplies its loss
    before its gradient is taken.

    Raises ConfigError for a weight of 0: such a task has no gradient.
    """

    fixed: bool = False  # whether every task must take part in every step

    def __init__(
        self,
        tasks: Mapping[str, TaskInfo],
        options: Mapping[str, Any] | None = None,
        at: At = "shared_parameters",
    ) -> None:
        super().__init__(tasks, options)
        self.at = at
        self._factors: dict[str, float] = dict(self.weights)
        for task, weight in self.weights.items():
            if weight == 0:
                raise ConfigError(
                    f"tasks.{task}.weight is 0: a task without a gradient cannot be balanced by gradients",
                    "remove the task, or give it a weight above 0",
                )

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, for the log: `balanced_backward` does not follow its gradient."""
        return self.weighted(losses).sum()

    def log(self) -> dict[str, float]:
        """The factor by which each task's gradient counted in the last step, where the method has factors."""
        return dict(self._factors)

    def direction(self, jacobian: Jacobian, losses: Mapping[str, float]) -> Direction:
        """Aggregate the gradients of the weighted `losses`.

        Raises TrainingError naming the task whose gradient is not finite, or is 0 or lost beside another's; a task of
        which the batch knows nothing (loss and gradient are 0) takes no part in the step where the method allows it.
        """
        gramian = jacobian.gramian()
        kept = self._known(jacobian, gramian, losses)
        if not kept:
            return Direction(jacobian.combine(torch.zeros(len(jacobian.tasks))))
        whole = len(kept) == len(jacobian.tasks)
        part = jacobian if whole else jacobian.only(kept)
        direction = self._direction(part, gramian[kept][:, kept], {task: losses[task] for task in part.tasks})
        if not _finite(direction.shared):
            raise TrainingError(
                f"the gradients cannot be aggregated: {norms_of(jacobian.tasks, gramian)}",
                "bring the tasks' losses to one scale with tasks.NAME.weight, or choose another balancing.name",
            )
        if direction.factors is not None:
            factors = dict(zip(part.tasks, direction.factors.tolist(), strict=True))
            self._factors = {task: factors.get(task, 0.0) * self.weights[task] for task in self.weights}
        return direction

    @abstractmethod
    def _direction(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> Direction:
        """Aggregate finite gradients that are not 0; `gramian` float64 (T, T) is the jacobian's."""

    def _known(self, jacobian: Jacobian, gramian: Tensor, losses: Mapping[str, float]) -> list[int]:
        """Positions of the tasks that take part. Raises TrainingError (see `direction`)."""
        norms = gramian.diagonal().sqrt().tolist()
        for task, norm in zip(jacobian.tasks, norms, strict=True):
            if not math.isfinite(norm):
                raise TrainingError(
                    f"the gradient of task {task!r} is not finite",
                    "lower train.optimizer.lr, set train.clip, or use train.autocast=off",
                )
        least = torch.finfo(jacobian.rows[0].dtype).eps * max(norms)
        kept = []
        for index, (task, norm) in enumerate(zip(jacobian.tasks, norms, strict=True)):
            unknown = norm == 0 and losses[task] == 0
            if unknown and not self.fixed:
                continue
            if norm <= least:
                raise TrainingError(
                    f"the gradient of task {task!r} is ill-conditioned: {norms_of(jacobian.tasks, gramian)}",
                    "every sample of the batch may lack the task's target: use larger batches, or balancing.name: equal"
                    if unknown
                    else f"scale its loss with tasks.{task}.weight, or check that it depends on the encoder",
                )
            kept.append(index)
        return kept


def norms_of(tasks: Sequence[str], gramian: Tensor) -> str:
    """For an error: the norm of each task's gradient."""
    norms = gramian.diagonal().sqrt().tolist()
    parts = (f"{norm:.3g} of {task}" for task, norm in zip(tasks, norms, strict=True))
    return f"the norms are {', '.join(parts)}"


def balanced_backward(
    balancer: GradientBalancer,
    losses: Mapping[str, Tensor],
    features: Sequence[Tensor],
    encoder: Iterable[nn.Parameter],
    own: Mapping[str, Iterable[nn.Parameter]],
    *,
    late: Iterable[nn.Parameter] = (),
    penalty: Tensor | None = None,
    others: Iterable[nn.Parameter] = (),
    scale: float = 1.0,
) -> None:
    """Add to `.grad` what an optimizer shall follow: aggregated gradients in the encoder, each task's own in its head.

    Args:
        features: the encoder's output as the heads read it. None may be computed from another: of several maps give
            views, `[x.view_as(x) for x in maps]`, and the same to the heads.
        encoder: the encoder's parameters; those that need no gradient are left out.
        own: the parameters of each task's head.
        late: those of `encoder` that the heads use too. At features they get the sum of the tasks' gradients.
        penalty: a scalar that is added after balancing, a function of features or parameters.
        others: further parameters that the penalty depends on.
        scale: multiplies every gradient that is left behind, as a loss scaler asks for.

    Where several processes train together (torch.distributed is initialized) gradients are reduced here, task by task
    before they are aggregated: the model must not be wrapped in DistributedDataParallel.

    Raises TrainingError naming a task whose gradient cannot be used (see `GradientBalancer.direction`), ConfigError
    where nothing of the encoder is trained.
    """
    at_features = balancer.at == "features"
    outer = list(late) if at_features else []
    passed_over = {id(parameter) for parameter in outer}
    trained = [p for p in encoder if p.requires_grad and id(p) not in passed_over]
    if not trained:
        raise ConfigError("nothing of the encoder is trained, so no gradients can be balanced")
    mine = {task: [p for p in [*own[task], *outer] if p.requires_grad] for task in balancer.weights}
    weighted = {task: weight * losses[task] for task, weight in balancer.weights.items()}
    gradients = task_gradients(
        weighted,
        features if at_features else trained,
        mine,
        split=at_features,
        scale=scale,
        retain=penalty is not None,
    )
    direction = _direction(balancer, gradients, weighted, overflow=scale != 1)
    factors = [1.0] * len(weighted) if direction.heads is None else direction.heads.tolist()
    for factor, task in zip(factors, weighted, strict=True):
        for parameter, gradient in zip(mine[task], gradients.own[task], strict=True):
            _add(parameter, gradient if factor == 1 else gradient * factor)
    ends: list[Tensor] = []
    starts: list[Tensor] = []
    if at_features:
        ends += features
        # scaled first: half precision would lose what is small
        starts += [(part * scale).to(end.dtype) for part, end in zip(direction.shared, features, strict=True)]
    else:
        for parameter, part in zip(trained, direction.shared, strict=True):
            part = part.to(parameter.dtype)
            _add(parameter, part if scale == 1 else part * scale)
    if penalty is not None:
        ends.append(penalty)
        starts.append(torch.full_like(penalty, scale / world()))
    if ends:
        reached = [
            *trained,
            *(p for ps in mine.values() for p in ps),
            *(p for p in others if p.requires_grad),
        ]
        _backward(ends, starts, {id(p): p for p in reached})


def _direction(
    balancer: GradientBalancer, gradients: TaskGradients, losses: Mapping[str, Tensor], *, overflow: bool
) -> Direction:
    """The balancer's direction; with `overflow`, of gradients that are not finite their sum, for the scaler to see."""
    jacobian = gradients.jacobian
    if overflow and not _finite(jacobian.rows):
        return Direction(jacobian.combine(torch.ones(len(jacobian.tasks))))
    values = torch.stack([loss.detach().double() for loss in losses.values()])
    if distributed():
        average([values])
    return balancer.direction(jacobian, dict(zip(losses, values.tolist(), strict=True)))


def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every value of every tensor is finite: one wait for a GPU, not one a tensor."""
    flags = [torch.isfinite(one).all() for one in tensors]
    return not flags or bool(torch.stack([one.to(flags[0].device) for one in flags]).all())


def _backward(
    ends: Sequence[Tensor], starts: Sequence[Tensor], parameters: Mapping[int, nn.Parameter]
) -> None:
    """One backward pass from `ends`, summed over processes, added to what the parameters have."""
    if not distributed():
        torch.autograd.backward(ends, starts)
        return
    earlier = {key: parameter.grad for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    torch.autograd.backward(ends, starts)
    device = next(iter(parameters.values())).device
    met = torch.tensor([parameter.grad is not None for parameter in parameters.values()], device=device).int()
    sum_over([met])  # a process whose part of the batch lacks a task may not have met all
    gradients = {
        key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for (key, parameter), some in zip(parameters.items(), met.tolist(), strict=True)
        if some
    }
    sum_over(list(gradients.values()))
    for key, parameter in parameters.items():
        parameter.grad = None
        for part in (earlier[key], gradients.get(key)):
            if part is not None:
                _add(parameter, part)


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    if (
        gradient.stride() != parameter.stride()
    ):  # fused optimizers walk both in one order, such as channels last
        gradient = torch.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
