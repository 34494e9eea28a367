"""From the name of a kind of task to its class: one file of `kinds` is imported, or the user's own module."""

from __future__ import annotations

import inspect
from typing import get_args

from compactmtl.config import trust
from compactmtl.config.registry import class_in, file_names
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import TargetKind, Task

KINDS = "tasks/kinds"  # the folder
_DECLARED = (
    "target_kind",
    "losses",
    "primary",
    "dense",
    "default_head",
)  # by a class that has no default for them
_MEND = "derive it from compactmtl.tasks.MapTask or ValueTask; see docs/tasks.md for what a task class has"


def task_class(kind: str, key: str) -> type[Task]:
    """The class of a kind: one of `compactmtl.tasks.kinds` by name, or `package.module:Class` of the user's own.

    Args:
        kind: the value of a recipe's or a bundle's key.
        key: where it stands, for messages, such as tasks.age.kind.

    Raises:
        UntrustedError: for a class of the user's own without the user's word (see compactmtl.config.trust).
        ConfigError: where there is no such kind, the module cannot be imported, or the class is not a whole task.
    """
    if trust.is_class_name(kind):
        return _checked(trust.import_class(kind, key, trust.those(_is_task), "task classes"), kind, key)
    return class_in(KINDS, kind, _is_task, key, "kind of task")


def task_kinds() -> tuple[str, ...]:
    """Every kind that the package has, in alphabetical order. None is imported."""
    return file_names(KINDS)


def all_classes() -> dict[str, type[Task]]:
    """Every kind that the package has, by name."""
    return {kind: class_in(KINDS, kind, _is_task, "tasks.*.kind", "kind of task") for kind in task_kinds()}


def usual_kind(target: TargetKind) -> str:
    """The kind of task that shows targets of a format, where several learn it."""
    (kind,) = (name for name, one in all_classes().items() if one.usual and one.target_kind == target)
    return kind


def _is_task(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Task)


def _checked(value: object, kind: str, key: str) -> type[Task]:
    if not (inspect.isclass(value) and issubclass(value, Task)):
        raise ConfigError(f"{key}: {kind} is not a task class", _MEND)
    lacking = [name for name in _DECLARED if not hasattr(value, name)] + sorted(value.__abstractmethods__)
    if lacking:
        raise ConfigError(f"{key}: {kind} lacks {', '.join(lacking)}", _MEND)
    if value.target_kind not in get_args(TargetKind):
        raise ConfigError(
            f"{key}: {kind}.target_kind is {value.target_kind!r}, which is no format of a target",
            f"name one of {', '.join(get_args(TargetKind))}",
        )
    return value
