"""What every section of a recipe or target is made of: frozen models and the types of their values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = bool | int | float | str | None
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class NoOptions(Frozen):
    """Options of what has none."""


class ScheduleConfig(Frozen):
    """Learning rate over the steps of the whole run."""

    name: Literal["one_cycle", "cosine", "constant"] = "cosine"
    warmup: Share = Field(0.05, description="share of all steps in which the rate rises")
    final: Share = Field(0.0, description="last rate as a share of the peak")
    restarts: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="shares of all steps at which the schedule begins again, as for fine-tuning"
    )
    restart_peak: Positive = Field(1.0, description="peak rate after a restart as a share of the first")

    @model_validator(mode="after")
    def _rising(self) -> ScheduleConfig:
        if list(self.restarts) != sorted(set(self.restarts)):
            raise ValueError(f"restarts are shares in rising order, found {list(self.restarts)}")
        return self
