"""What each task may lose while a network shrinks: shares that may be written as percentages, and what they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from compactmtl.config.lookup import name_hint
from compactmtl.config.words import key

LOSSES = "sparsity.selective.losses"


def as_share(value: Any) -> Any:
    """A percentage such as "1 %" as the share 0.01; anything else as it is, for the check of numbers."""
    if not isinstance(value, str) or not value.rstrip().endswith("%"):
        return value
    number = value.rstrip()[:-1].strip()
    try:
        return float(number) / 100
    except ValueError:
        raise ValueError(f"expected a number before %, found {value!r}") from None


def _below_all(share: float) -> float:
    """A share below 1: a bare 1 would be all of it, and is hardly ever meant. Raises ValueError."""
    if share >= 1:
        raise ValueError(
            f"{share:g} is {100 * share:g} %, and a bound is less than all of it: write a percentage as `1 %`, and leave out"
            " a task that may lose anything"
        )
    return share


TaskLoss = Annotated[
    float,
    BeforeValidator(as_share),
    Field(ge=0, allow_inf_nan=False),
    AfterValidator(_below_all),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": r"^\s*\d{1,2}(\.\d+)?\s*%\s*$"},
            ]
        }
    ),
]


def check_losses(losses: Mapping[str, float], tasks_every: int | None) -> None:
    """Whether bounds can be kept with the rest of the section. Raises ValueError naming the key that stands against it."""
    if losses and tasks_every == 0:
        raise ValueError(
            f"{key(LOSSES)} need an importance for each task, and {key('sparsity.selective.tasks_every')}: 0 looks at none;"
            " leave it out"
        )


def check_held_out(losses: Mapping[str, float], tasks: Collection[str], holdout: float) -> None:
    """Whether the recipe has what bounds are watched on. Raises ValueError naming an unknown task, or the missing split."""
    for name in losses:
        if name not in tasks:
            raise ValueError(f"{LOSSES} names {name!r}, which is no task: {name_hint(name, list(tasks))}")
    if losses and holdout == 0:
        raise ValueError(
            f"{LOSSES} are watched on a held-out part of the training split, and data.holdout is 0: set data.holdout,"
            " such as 0.1"
        )
