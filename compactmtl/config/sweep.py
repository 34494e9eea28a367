"""The sweep: which recipes are trained over which seeds, and what they are held against."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from compactmtl.config.schema import Frozen

_NAME = re.compile(r"\w[\w.-]*")  # it names a folder


class EntryConfig(Frozen):
    """One row of the table: a recipe with overrides, or runs that were made elsewhere."""

    description: str = Field("", description="what sets it apart")
    recipe: str | None = Field(None, description="recipe by name; the sweep's by default")
    overrides: tuple[str, ...] = Field((), description="key=value, laid over the sweep's")
    tasks: tuple[str, ...] = Field((), description="train these tasks alone; all by default")
    against: str | None = Field(
        None, description="an entry that it is held against, seed by seed, beside the sweep's baseline"
    )
    runs: tuple[str, ...] = Field(
        (), description="globs of finished run folders in place of a recipe, one a seed"
    )

    @model_validator(mode="after")
    def _one_source(self) -> EntryConfig:
        if self.runs and (self.recipe or self.overrides or self.tasks):
            raise ValueError("runs: give runs made elsewhere or a recipe to train, not both")
        return self


class SweepConfig(Frozen):
    """A table over seeds."""

    description: str = Field("", description="one line for `sweep --list`")
    recipe: str | None = Field(None, description="recipe of every entry that names none")
    overrides: tuple[str, ...] = Field((), description="key=value, laid over every entry's recipe")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    baseline: str | None = Field(None, description="the entry that others are held against, seed by seed")
    compact: bool = Field(False, description="compact every run")
    probe: Annotated[int, Field(ge=10)] | None = Field(
        None, description="probe every run with predictors fitted on so many training images"
    )
    targets: tuple[str, ...] = Field((), description="export every run to these targets and verify it")
    entries: Annotated[dict[str, EntryConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> SweepConfig:
        if self.baseline is not None and self.baseline not in self.entries:
            raise ValueError(f"baseline {self.baseline!r} is none of the entries {', '.join(self.entries)}")
        for name, entry in self.entries.items():
            if entry.against is not None and entry.against not in self.entries:
                raise ValueError(f"entries.{name}.against: {entry.against!r} is none of the entries")
            if not _NAME.fullmatch(name):
                raise ValueError(f"entries.{name}: a name is letters, digits, dots, dashes and underscores")
            if not entry.runs and entry.recipe is None and self.recipe is None:
                raise ValueError(f"entries.{name}: no recipe; name one here or for the sweep")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has one twice: {list(self.seeds)}")
        return self
