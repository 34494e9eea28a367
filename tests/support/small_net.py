"""A small network of three tasks in float64, and its task gradients by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compactmtl.balancing import Balancer, GradientBalancer, balanced_backward

TASKS = ("a", "b", "c")


@dataclass
class Net:
    """An encoder, three heads, and batches with targets."""

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    scales: tuple[float, ...] = (1.0, 9.0, 0.5)  # of the losses: their gradients differ in size and conflict

    def features(self, step: int) -> Tensor:
        """The encoder's output on batch number `step`."""
        generator = torch.Generator().manual_seed(step)
        return self.encoder(torch.randn(7, 6, generator=generator, dtype=torch.float64))  # type: ignore[no-any-return]

    def losses(self, features: Tensor, step: int) -> dict[str, Tensor]:
        """Mean squared errors against targets of the batch."""
        generator = torch.Generator().manual_seed(1000 + step)
        found = {}
        for (task, head), scale in zip(self.heads.items(), self.scales, strict=True):
            output = head(features)
            target = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            found[task] = scale * (output - target).square().mean()
        return found

    def own(self) -> dict[str, list[nn.Parameter]]:
        return {task: list(head.parameters()) for task, head in self.heads.items()}

    def follow(self, balancer: Balancer, step: int = 0) -> None:
        """Leave in `.grad` what the balancer makes of one batch."""
        for parameter in [*self.encoder.parameters(), *(p for ps in self.own().values() for p in ps)]:
            parameter.grad = None
        features = self.features(step)
        losses = self.losses(features, step)
        if isinstance(balancer, GradientBalancer):
            balanced_backward(balancer, losses, [features], self.encoder.parameters(), self.own())
        else:
            balancer.combine(losses).backward()  # type: ignore[no-untyped-call]

    def gradient(self) -> Tensor:
        """The encoder's gradient as one vector."""
        return flat([p.grad for p in self.encoder.parameters() if p.grad is not None])

    def jacobian(self, step: int = 0) -> Tensor:
        """Each task's gradient by the encoder's parameters, one row a task, from a graph of its own each."""
        rows = []
        for task in self.heads:
            loss = self.losses(self.features(step), step)[task]
            rows.append(flat(torch.autograd.grad(loss, list(self.encoder.parameters()))))
        return torch.stack(rows)

    def feature_jacobian(self, step: int = 0) -> Tensor:
        """Each task's gradient by the features, one row a task."""
        rows = []
        for task in self.heads:
            features = self.features(step)
            rows.append(torch.autograd.grad(self.losses(features, step)[task], features)[0].flatten())
        return torch.stack(rows)

    def through_encoder(self, vector: Tensor, step: int = 0) -> Tensor:
        """What the encoder's parameters get where the features are given the gradient `vector`."""
        features = self.features(step)
        return flat(torch.autograd.grad(features, list(self.encoder.parameters()), vector.view_as(features)))


def small_net() -> Net:
    """A network with the same weights at every call; the widths of its heads differ."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        heads = {task: nn.Linear(5, width).double() for task, width in zip(TASKS, (3, 1, 2), strict=True)}
    return Net(encoder, heads)


def flat(tensors: object) -> Tensor:
    """Tensors end to end."""
    return torch.cat([tensor.flatten() for tensor in tensors])  # type: ignore[attr-defined]
