"""What all kinds of tasks share: checks of their configuration, masked means, the error of an empty split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compactmtl.config import validate_options
from compactmtl.config.recipe import Frozen, TaskConfig
from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import TargetKind, TargetSpec

Options = TypeVar("Options", bound=Frozen)


def nearest(word: str, choices: Sequence[str]) -> str:
    """A hint that names the choice most like `word`, or all of them."""
    close = get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(choices))}"


def check_spec(name: str, config: TaskConfig, spec: TargetSpec, kind: TargetKind) -> None:
    """Raise ConfigError where the target's format is not the one that this kind of task learns."""
    if spec.kind != kind:
        raise ConfigError(
            f"tasks.{name}: a {config.kind} task needs a target of kind {kind!r}, "
            f"but {config.target or name!r} is of kind {spec.kind!r}",
            f"set tasks.{name}.kind or tasks.{name}.target so that they agree",
        )
    least = {"mask": 2, "class": 2, "multilabel": 1}.get(kind, 0)
    if len(spec.classes) < least:
        raise ConfigError(
            f"tasks.{name}: target {config.target or name!r} names {len(spec.classes)} classes, needs at least {least}",
            "mend the classes in the data set's target specification",
        )
    if not spec.std > 0:
        raise ConfigError(
            f"tasks.{name}: target {config.target or name!r} has standard deviation {spec.std}",
            "a target that is the same everywhere cannot be learned; check the training split",
        )


def read_options(model: type[Options], name: str, config: TaskConfig) -> Options:
    """A task's options, typed. Raises ConfigError for an unknown option or a value that does not fit."""
    return validate_options(model, config.options, f"tasks.{name}.options")


def choose_loss(name: str, config: TaskConfig, losses: Sequence[str]) -> str:
    """The configured loss, by default the kind's first. Raises ConfigError for an unknown one."""
    if config.loss is None:
        return losses[0]
    if config.loss not in losses:
        raise ConfigError(
            f"tasks.{name}.loss: {config.kind} has no loss {config.loss!r}", nearest(config.loss, losses)
        )
    return config.loss


def check_used(name: str, config: TaskConfig, loss: str, uses: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError where an option is set that the chosen loss passes over; `uses`: option to its losses."""
    for option, losses in uses.items():
        if option in config.options and loss not in losses:
            raise ConfigError(
                f"tasks.{name}.options.{option}: the loss {loss!r} has no {option}",
                f"leave it out, or set tasks.{name}.loss: {losses[0]}",
            )


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; a zero with a graph where nothing is valid.

    Both have the same shape. A value that is not finite at a place that isn't valid does not leak in.
    """
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    return total / valid.sum().clamp(min=1)


def cross_entropy(output: Tensor, target: Tensor, ignore_index: int | None, smoothing: float) -> Tensor:
    """Mean cross-entropy over the elements that count; a zero with a graph where none does.

    output (B, K, ...) logits, target (B, ...) class indices.
    """
    # torch skips -100 by default, which is no class and so skips nothing.
    ignore = -100 if ignore_index is None else ignore_index
    # Its own mean would be 0/0 where every element is ignored.
    total = F.cross_entropy(
        output.float(), target, ignore_index=ignore, reduction="sum", label_smoothing=smoothing
    )
    return total / (target != ignore).sum().clamp(min=1)


def nothing_valid(name: str) -> DataError:
    """The error of a split in which no element of a task's target counts."""
    return DataError(
        f"task {name!r}: not one element of the split has a known target, so it has no metrics",
        "run `compactmtl data check NAME root=FOLDER` and look at this target's labels",
    )
