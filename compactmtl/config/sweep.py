"""The sweep: which recipes are trained over which seeds, and what they are held against."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from compactmtl.artifacts.layout import SEARCH_BEST, SEARCH_TRIALS
from compactmtl.config.schema import Frozen
from compactmtl.config.search import SearchConfig

_NAME = re.compile(r"\w[\w.-]*")  # it names a folder


class EntryConfig(Frozen):
    """One row of the table: a recipe with overrides, or runs that were made elsewhere."""

    description: str = Field("", description="What distinguishes this entry.")
    recipe: str | None = Field(None, description="Recipe by name or path. null: the recipe of the sweep.")
    overrides: tuple[str, ...] = Field((), description="`key=value` words, applied after those of the sweep.")
    tasks: tuple[str, ...] = Field((), description="Train only these tasks. By default all.")
    against: str | None = Field(
        None, description="Entry that this one is compared with, seed by seed, in addition to the baseline."
    )
    series: str | None = Field(
        None,
        description="Curve of the figures that this entry is a point of, such as a method at several sizes. null: "
        "the entry alone.",
    )
    runs: tuple[str, ...] = Field(
        (), description="Glob patterns of finished run folders, one per seed, instead of a recipe."
    )

    @model_validator(mode="after")
    def _one_source(self) -> EntryConfig:
        if self.runs and (self.recipe or self.overrides or self.tasks):
            raise ValueError("runs: give runs made elsewhere or a recipe to train, not both")
        return self


class SweepConfig(Frozen):
    """A table over seeds."""

    description: str = Field("", description="One line for `compactmtl sweep --list`.")
    recipe: str | None = Field(None, description="Recipe of every entry that names none.")
    overrides: tuple[str, ...] = Field(
        (), description="`key=value` words, applied to the recipe of every entry."
    )
    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=1, description="Seeds. Every entry is trained once per seed."
    )
    baseline: str | None = Field(
        None, description="Entry that all others are compared with, seed by seed. null: none."
    )
    compact: bool = Field(False, description="Compact every run.")
    probe: Annotated[int, Field(ge=10)] | None = Field(
        None,
        description="Probe every run with predictors fitted to this many training images. null: no probing.",
    )
    targets: tuple[str, ...] = Field(
        (),
        description="Targets to which every run is exported and on which it is verified. The exports of all entries are "
        "then timed side by side.",
    )
    entries: dict[str, EntryConfig] = Field(
        default_factory=dict,
        description="The rows of the table by name, at least one unless there is a `search`.",
    )
    search: SearchConfig | None = Field(
        None,
        description="A search over keys of a recipe, after the entries are trained. Its trials use the sweep's seeds and "
        "targets, and the held-out split chooses their epochs and networks. null: none.",
    )

    @model_validator(mode="after")
    def _names(self) -> SweepConfig:
        if not self.entries and self.search is None:
            raise ValueError("entries needs at least one, or there must be a search")
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
        if self.search is not None:
            self._check_search(self.search)
        return self

    def _check_search(self, search: SearchConfig) -> None:
        if taken := [name for name in (SEARCH_TRIALS, SEARCH_BEST) if name in self.entries]:
            raise ValueError(f"entries.{taken[0]}: a search has a folder of this name; rename the entry")
        if search.recipe is None and self.recipe is None:
            raise ValueError("search: no recipe; name one here or for the sweep")
        if self.baseline is None and any(one.name == "delta_m" for one in search.objectives):
            raise ValueError(
                "search.objectives: delta_m needs the sweep's baseline; name an entry as baseline"
            )
