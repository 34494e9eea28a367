"""From a recipe's task sections and a data set's targets to tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks.base import TargetSpec, Task
from compactmtl.tasks.binned_regression import BinnedRegressionTask
from compactmtl.tasks.boundaries import BoundariesTask
from compactmtl.tasks.classification import ClassificationTask
from compactmtl.tasks.common import nearest
from compactmtl.tasks.depth import DepthTask
from compactmtl.tasks.disparity import DisparityTask
from compactmtl.tasks.instances import InstancesTask
from compactmtl.tasks.multilabel import MultilabelTask
from compactmtl.tasks.normals import NormalsTask
from compactmtl.tasks.regression import RegressionTask
from compactmtl.tasks.segmentation import SegmentationTask


class _Builder(Protocol):
    def __call__(self, name: str, config: TaskConfig, spec: TargetSpec) -> Task: ...


KINDS: Mapping[str, _Builder] = {
    "segmentation": SegmentationTask.build,
    "depth": DepthTask.build,
    "disparity": DisparityTask.build,
    "normals": NormalsTask.build,
    "boundaries": BoundariesTask.build,
    "classification": ClassificationTask.build,
    "multilabel": MultilabelTask.build,
    "regression": RegressionTask.build,
    "binned_regression": BinnedRegressionTask.build,
    "instances": InstancesTask.build,
}

# The name becomes an output of the exported model, a folder part and a column of tables.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def build_task(name: str, config: TaskConfig, spec: TargetSpec) -> Task:
    """The task `name` on a target of the data set that `spec` describes.

    Raises ConfigError where the name cannot name an output, or kind, loss or options do not fit the target.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"tasks.{name}: a task's name has letters, digits, _ and -, and begins with a letter",
            "rename the task; its target can keep its name with `target:`",
        )
    return KINDS[config.kind](name, config, spec)


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
