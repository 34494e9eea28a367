"""Losses of a running epoch: their means for the log, and a stop at the first one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

CHECK_EVERY = 20  # steps between looks on a GPU, where each look waits for the device


class NotFiniteError(ArithmeticError):
    """What is not finite and where; the loop adds the last good checkpoint."""


class LossWatch:
    """Sums the losses of an epoch's steps and raises NotFiniteError naming the first bad step and task.

    On the CPU every step is looked at before the weights change; elsewhere every twentieth, and
    always before a checkpoint, so that none is written with broken weights.
    """

    def __init__(self, names: Sequence[str], device: torch.device, sums: Mapping[str, float]) -> None:
        self.sums = {name: sums.get(name, 0.0) for name in names}
        self._every = 1 if device.type == "cpu" else CHECK_EVERY
        self._pending: list[tuple[int, Tensor]] = []

    def note(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Remember the losses of a step, in the order of `names`."""
        self._pending.append((step, torch.stack([losses[name].detach().float() for name in self.sums])))
        if len(self._pending) >= self._every:
            self.look()

    def look(self) -> None:
        """Add what is remembered to the sums."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = torch.stack([values for _, values in pending]).tolist()
        for (step, _), values in zip(pending, rows, strict=True):
            for name, value in zip(self.sums, values, strict=True):
                if not math.isfinite(value):
                    raise NotFiniteError(f"{describe(name)} is {value} at step {step}")
                self.sums[name] += value


def describe(name: str) -> str:
    """A loss by the name that `LossWatch` has it under."""
    if name.startswith("penalty/"):
        return f"the penalty {name.removeprefix('penalty/')}"
    return "the balanced loss" if name == "total" else f"the loss of task '{name}'"


def check_weights(model: nn.Module, step: int) -> None:
    """Raise NotFiniteError naming the first parameter or buffer that is not finite."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    if not state:
        return
    flags = [torch.isfinite(value).all() for value in state.values()]
    finite = torch.stack(
        [flag.to(flags[0].device) for flag in flags]
    ).tolist()  # one wait for a GPU, not one a tensor
    for name, flag in zip(state, finite, strict=True):
        if not flag:
            raise NotFiniteError(f"the tensor {name} is not finite after step {step}")
