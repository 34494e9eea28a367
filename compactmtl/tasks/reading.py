"""Deprecated: how programs read outputs before tasks themselves did, with the old names. Use `Task.read`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compactmtl.config.recipe import TaskConfig
from compactmtl.tasks.base import Array, TargetSpec, Task
from compactmtl.tasks.build import recorded_task
from compactmtl.tasks.pictures import Picture


@dataclass(frozen=True)
class Reading:
    """A task under its earlier names: `decode` takes an array, `options` is a mapping."""

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> str:
        return self.task.kind

    @property
    def spec(self) -> TargetSpec:
        return self.task.spec

    @property
    def dense(self) -> bool:
        return self.task.dense

    @property
    def channels(self) -> int:
        return self.task.channels

    @property
    def options(self) -> Mapping[str, Any]:
        options: dict[str, Any] = self.task.options.model_dump()
        return options

    def decode(self, output: Array) -> Array:
        """`Task.read`."""
        return self.task.read(output)

    def probabilities(self, output: Array) -> dict[str, float]:
        return self.task.probabilities(output)

    def picture(self, value: Array) -> Picture:
        return self.task.picture(value)

    def caption(self, value: Array) -> str:
        return self.task.caption(value)


def reading(name: str, kind: str, spec: TargetSpec, options: Mapping[str, Any], channels: int) -> Reading:
    """Deprecated: `compactmtl.tasks.build_task`. Raises ArtifactError where the parts do not belong together."""
    warnings.warn(
        "compactmtl.tasks.reading is deprecated: use build_task and Task.read",
        DeprecationWarning,
        stacklevel=2,
    )
    config = TaskConfig.model_validate({"kind": kind, "options": dict(options)})
    return Reading(recorded_task(name, config, spec, channels))


def readings_of(tasks: Mapping[str, Task], owner: str) -> dict[str, Reading]:
    """What `readings` of a class gave, with the warning that `tasks` took its place."""
    warnings.warn(f"{owner}.readings is deprecated: use {owner}.tasks", DeprecationWarning, stacklevel=3)
    return {name: Reading(task) for name, task in tasks.items()}
