"""A small network of two tasks under a control, stepped by hand: selective shrinking with bounds on what they may lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from compactmtl.config.recipe import SelectiveConfig
from compactmtl.sparsity import ChannelGroups, SelectiveShrinking, channel_groups, split_parameter_groups
from compactmtl.sparsity.control import Control
from compactmtl.sparsity.held_out import HeldOut

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TASKS = ("near", "far")


def encoder_of(first: int, second: int, last: int) -> nn.Sequential:
    """Two convolutions with norms, one without, and a mean over positions."""
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
        nn.Conv2d(second, last, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class Net(nn.Module):
    """An encoder and two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder_of(12, 16, 12)
        self.heads = nn.ModuleDict({name: nn.Linear(12, 1) for name in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {name: head(features) for name, head in self.heads.items()}


def losses_of(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Mean squared errors on a batch of 16 images that `seed` draws."""
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    outputs = model(x)
    targets = {"near": x[:, :1, :4].mean((2, 3)) * 4, "far": x[:, 1:2].mean((2, 3)) * 3}
    return {name: (outputs[name] - targets[name]).square().mean() for name in TASKS}


Judge = Callable[[nn.Module], Mapping[str, HeldOut]]


def unharmed(model: nn.Module) -> dict[str, HeldOut]:
    """As if no task lost anything."""
    return {name: HeldOut(1.0, (1.0, 1.0)) for name in TASKS}


class Stepped:
    """The network under a control, stepped by hand with AdamW."""

    control: Control

    def __init__(self, control: Callable[[ChannelGroups], Control], decay: float) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.groups = channel_groups(self.model, IMAGE)
        self.control = control(self.groups)
        parameters = split_parameter_groups(self.model, self.control.shrunk, decay)
        self.optimizer = AdamW(parameters, lr=0.01)
        self.control.attach(self.optimizer)
        self.done = 0

    def run(self, steps: int) -> Self:
        for _ in range(steps):
            losses = losses_of(self.model, self.done)
            self.control.look(losses)
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            self.control.observe()
            self.optimizer.step()
            self.control.step()
            self.done += 1
            self.after_step()
        return self

    def after_step(self) -> None:
        """What a training does besides."""


class Training(Stepped):
    """Under selective shrinking with bounds. `judge` says what the tasks have on held-out data."""

    control: SelectiveShrinking

    def __init__(
        self, judge: Judge = unharmed, *, steps: int = 60, reduction: float = 0.6, **config: Any
    ) -> None:
        options = {
            "mac_reduction": reduction,
            "start": 0.2,
            "end": 0.8,
            "every": 5,
            "min_channels": 2,
            "tasks_every": 3,
            "losses": {"near": 0.1},
            "checks": 6,
            **config,
        }
        super().__init__(lambda groups: SelectiveShrinking(groups, SelectiveConfig(**options), steps), 0.01)
        self.judge = judge
        self.said: list[str] = []

    def after_step(self) -> None:
        if self.control.check_due:
            self.said.append(self.control.judge(self.judge(self.model), dict(self.model.named_buffers())))
