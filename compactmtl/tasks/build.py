"""From a recipe's task sections and a data set's targets to tasks, and from a bundle's record to the task that reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.config.recipe import TaskConfig
from compactmtl.config.trust import UntrustedError
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.tasks.base import TargetSpec, Task
from compactmtl.tasks.common import nearest
from compactmtl.tasks.registry import task_class

# The name becomes an output of the exported model, a folder part and a column of tables.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def build_task(name: str, config: TaskConfig, spec: TargetSpec) -> Task:
    """The task `name` on a target of the data set that `spec` describes.

    Raises ConfigError where the name cannot name an output, or kind, loss or options do not fit the target;
    UntrustedError for a kind of the user's own that may not be imported.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"tasks.{name}: a task's name has letters, digits, _ and -, and begins with a letter",
            "rename the task; its target can keep its name with `target:`",
        )
    return task_class(config.kind, f"tasks.{name}.kind").build(name, config, spec)


def build_tasks(configs: Mapping[str, TaskConfig], specs: Mapping[str, TargetSpec]) -> dict[str, Task]:
    """All tasks, in the order of `configs`; `target`, or else the task's name, picks the target.

    Raises ConfigError where the data set has no such target (it lists those it has) or where `build_task` does.
    """
    tasks: dict[str, Task] = {}
    for name, config in configs.items():
        target = config.target or name
        if target not in specs:
            offered = ", ".join(f"{key} ({spec.kind})" for key, spec in specs.items()) or "none"
            raise ConfigError(
                f"tasks.{name}: the data set has no target {target!r}; it offers {offered}",
                f"set tasks.{name}.target; {nearest(target, list(specs))}",
            )
        tasks[name] = build_task(name, config, specs[target])
    return tasks


def recorded_task(name: str, config: TaskConfig, spec: TargetSpec, channels: int) -> Task:
    """The task that reads an output of `channels` channels, as a bundle records it; no torch is loaded.

    Raises ArtifactError where the parts of the record do not belong together, UntrustedError as `build_task` does.
    """
    mend = f"{BUNDLE_FILE} is damaged: export the run again"
    try:
        task = build_task(name, config, spec)
    except UntrustedError:
        raise
    except ConfigError as error:
        raise ArtifactError(error.message, mend) from error
    if task.channels != channels:
        raise ArtifactError(
            f"task {name!r} of kind {config.kind} has {channels} channels, expected {task.channels}", mend
        )
    return task
