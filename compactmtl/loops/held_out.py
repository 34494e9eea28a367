"""What a loop of one's own says of its tasks, as shrinking reads it: their losses, and what they have on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.errors import ConfigError, TrainingError
from compactmtl.sparsity.held_out import PARTS, HeldOut

Values = float | Sequence[float] | Tensor
Told = Values | tuple[Values, bool]  # the value, and whether higher is better (by default it is)
Evaluate = Callable[[nn.Module], Mapping[str, Told]]


def check_looked(losses: Mapping[str, Tensor]) -> None:
    """Whether gradients can be taken of a step's losses. Raises ConfigError or TrainingError naming the first that is wrong."""
    mend = "give {task: loss}, each the tensor that backward() starts from"
    if not isinstance(losses, Mapping):
        raise ConfigError(f"look() was given a {type(losses).__name__}", mend)
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = (
                f"has shape {tuple(loss.shape)}"
                if isinstance(loss, Tensor)
                else f"is a {type(loss).__name__}"
            )
            raise ConfigError(f"the loss of {name!r} {found}, expected a tensor of one number", mend)
    if losses and not any(loss.requires_grad for loss in losses.values()):
        raise TrainingError(
            "look() was given losses without a graph, which have no gradients",
            "call it before backward(), outside of torch.no_grad(), with losses that are not detached",
        )


def as_held_out(told: Mapping[str, Told]) -> dict[str, HeldOut]:
    """Each task's value: a number, or values (N,) of single samples, of which the mean counts; with False where lower is better.

    Of values of single samples the standard error is known, by sample i in part i mod 10. Raises ConfigError for anything
    else.
    """
    if not isinstance(told, Mapping):
        raise ConfigError(f"the tasks' values are a {type(told).__name__}", "give a mapping of task to value")
    return {str(name): _held_out(str(name), value) for name, value in told.items()}


def _held_out(name: str, told: Any) -> HeldOut:
    higher = True
    if isinstance(told, tuple) and len(told) == 2 and isinstance(told[1], bool):
        told, higher = told
    try:
        values = torch.as_tensor(told, dtype=torch.float64).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the held-out value of {name!r} is a {type(told).__name__}",
            "give a number, or the values of single samples; and (value, False) where lower is better",
        ) from error
    if not len(values):
        raise ConfigError(f"the held-out data has no value of {name!r}", "hold out more of the data")
    if len(values) == 1:
        return HeldOut(float(values[0]), (), higher)
    count = min(PARTS, len(values))
    parts = tuple(float(values[number::count].mean()) for number in range(count))
    return HeldOut(float(values.mean()), parts, higher)


def check_evaluate(losses: Mapping[str, float], evaluate: Evaluate | None) -> None:
    """Whether bounds and what measures them go together. Raises ConfigError."""
    if evaluate is not None and not losses:
        raise ConfigError(
            "evaluate measures what tasks lose, and no losses are bounded",
            "give losses={'task': 0.01}, or leave it out",
        )
    if evaluate is not None and not callable(evaluate):
        raise ConfigError(
            f"evaluate is a {type(evaluate).__name__}",
            "give a function of the network that returns {task: value}",
        )
