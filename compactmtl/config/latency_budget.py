"""What a whole model may take on a target, in milliseconds or against the original: a section of a recipe's target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen

AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Reduction = Annotated[float, Field(gt=0, lt=1)]  # of 0 there is nothing to do, and 1 leaves no network
LIMITS = ("ms", "speedup", "reduction")  # of a latency budget


class LatencyBudget(Frozen):
    """What the whole model may take on a target, in the target's precision and at its batch size: exactly one limit."""

    target: str | None = Field(
        None,
        description="Target by name or file. Its layers are timed at the start of training, or read from the user's "
        "cache. null: the target of `table`.",
    )
    ms: AboveZero | None = Field(None, description="Most milliseconds, as `export` measures them (median).")
    speedup: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        None, description="How many times as fast as the original model."
    )
    reduction: Reduction | None = Field(None, description="Share of the original model's latency to remove.")
    table: str | None = Field(
        None,
        description="JSON file of layer latencies, as the verb `latency` writes it, such as one measured on another "
        "device. null: measure here.",
    )

    @model_validator(mode="after")
    def _one_limit(self) -> LatencyBudget:
        given = [key for key in LIMITS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(LIMITS)}, found {' and '.join(given) or 'none'}"
            )
        if self.target is None and self.table is None:
            raise ValueError("a latency budget needs a target, such as onnxruntime-cpu, or a table")
        return self

    @property
    def target_name(self) -> str:
        """The target as an export names it: of a file its stem; empty where the table alone says what it is of."""
        return "" if self.target is None else Path(self.target).stem

    @property
    def limit(self) -> str:
        """Which limit is given."""
        return next(key for key in LIMITS if getattr(self, key) is not None)

    def milliseconds(self, whole_ms: float) -> float:
        """Most milliseconds of a model whose original takes `whole_ms`."""
        if self.ms is not None:
            return self.ms
        return (
            whole_ms / self.speedup if self.speedup is not None else whole_ms * (1 - (self.reduction or 0.0))
        )
