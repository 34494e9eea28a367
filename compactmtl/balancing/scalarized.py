"""A balancer by one of TorchJD's scalarizers: one scalar made of the losses, whose gradient is then followed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torchjd import scalarization as jd

from compactmtl.balancing.base import Balancer, TaskInfo, check_positive
from compactmtl.balancing.options import PerTask
from compactmtl.balancing.torchjd_adapter import dump_state, load_state
from compactmtl.config.schema import Frozen


class ReferenceOptions(Frozen):
    """Preferences and the ideal losses, in the order of the tasks; equal ones and zeros by default."""

    preference: PerTask = None
    reference: tuple[float, ...] | None = None


def shares(values: tuple[float, ...] | None, count: int) -> Tensor:
    """Preferences of `count` tasks, equal ones where none are given."""
    return torch.full((count,), 1 / count) if values is None else torch.tensor(values)


class Scalarized(Balancer):
    """A balancer by one of TorchJD's scalarizers, which `make` builds of its options, of the weighted losses.

    Raises ConfigError where its options do not fit, TrainingError for a loss of 0 whose logarithm it would take.
    """

    positive: ClassVar[bool] = False  # whether it takes the losses' logarithm
    _device: Tensor  # empty, where the losses are

    def __init__(self, tasks: Mapping[str, TaskInfo], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(tasks, options)
        self.scalarizer = self.make()
        self._factors: Tensor | None = None
        self.register_buffer("_device", torch.empty(0), persistent=False)

    @abstractmethod
    def make(self) -> jd.Scalarizer:
        """TorchJD's scalarizer of these options."""

    def _combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        values = self.weighted(losses)
        if self.positive:
            check_positive(self.name, values, self.weights)
        if values.requires_grad:
            values.register_hook(self._note)  # type: ignore[no-untyped-call]
        return self.scalarizer(values)

    def _note(self, gradient: Tensor) -> None:
        self._factors = gradient.detach() / self.loss_scale

    def log(self) -> dict[str, float]:
        """The factor by which each task's loss counted in the last step."""
        if self._factors is None:
            return dict(self.weights)
        pairs = zip(self.weights.items(), self._factors.tolist(), strict=True)
        return {task: factor * weight for (task, weight), factor in pairs}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # constants of TorchJD's that are neither parameters nor buffers
        for name in ("weights", "reference"):
            if isinstance(value := getattr(self.scalarizer, name, None), Tensor):
                setattr(self.scalarizer, name, fn(value))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def get_extra_state(self) -> dict[str, Any]:
        """What the scalarizer remembers beside its parameters."""
        return dump_state(self.scalarizer)

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        load_state(self.scalarizer, state, self._device.device)
