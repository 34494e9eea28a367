"""Tasks: for each kind its target's format, loss, metrics, decoding and picture."""

from compactmtl.tasks.base import MetricInfo, Metrics, TargetKind, TargetSpec, Task
from compactmtl.tasks.build import build_task, build_tasks
from compactmtl.tasks.gain import UndefinedGainError, delta_m, mean_score

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
