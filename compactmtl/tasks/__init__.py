"""Tasks: for each kind its target's format, loss, metrics, decoding and picture."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.tasks.base import MapTask, MetricInfo, Metrics, TargetKind, TargetSpec, Task, ValueTask
    from compactmtl.tasks.build import build_task, build_tasks
    from compactmtl.tasks.gain import UndefinedGainError, delta_m, mean_score
    from compactmtl.tasks.registry import task_class

# A public name's module is imported when the name is asked for.
_HOME = {
    "MapTask": "base",
    "MetricInfo": "base",
    "Metrics": "base",
    "TargetKind": "base",
    "TargetSpec": "base",
    "Task": "base",
    "UndefinedGainError": "gain",
    "ValueTask": "base",
    "build_task": "build",
    "build_tasks": "build",
    "delta_m": "gain",
    "mean_score": "gain",
    "task_class": "registry",
}

__all__ = [
    "MapTask",
    "MetricInfo",
    "Metrics",
    "TargetKind",
    "TargetSpec",
    "Task",
    "UndefinedGainError",
    "ValueTask",
    "build_task",
    "build_tasks",
    "delta_m",
    "mean_score",
    "task_class",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
