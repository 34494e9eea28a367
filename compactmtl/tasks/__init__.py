"""Tasks: for each kind its target's format, loss, metrics, decoding and picture."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compactmtl.tasks.base import MetricInfo, Metrics, TargetKind, TargetSpec, Task
    from compactmtl.tasks.build import build_task, build_tasks
    from compactmtl.tasks.gain import UndefinedGainError, delta_m, mean_score

# A door opens when it is asked for: whoever only reads a bundle loads no torch.
_HOME = {
    "MetricInfo": "base",
    "Metrics": "base",
    "TargetKind": "base",
    "TargetSpec": "base",
    "Task": "base",
    "UndefinedGainError": "gain",
    "build_task": "build",
    "build_tasks": "build",
    "delta_m": "gain",
    "mean_score": "gain",
}

__all__ = [
    "MetricInfo",
    "Metrics",
    "TargetKind",
    "TargetSpec",
    "Task",
    "UndefinedGainError",
    "build_task",
    "build_tasks",
    "delta_m",
    "mean_score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
