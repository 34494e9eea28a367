"""One number for several tasks: the multi-task gain Δm against a baseline, and a score without one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compactmtl.errors import ConfigError, DataError
from compactmtl.tasks.base import MetricInfo, Task
from compactmtl.tasks.common import nearest

if TYPE_CHECKING:
    from torch import Tensor

MetricValues = Mapping[str, Mapping[str, float]]  # task -> metric -> value

RIGHT = 0.5  # the score from which a single prediction is not called wrong


def definition(baseline: str) -> str:
    """What Δm is, in one line for a reader of a table."""
    return (
        f"Δm is the mean relative improvement over {baseline}: (m − m₀) / |m₀| of each metric, with the sign flipped where"
        " lower is better, averaged over the metrics of a task and then over tasks; +2 % means 2 % better"
    )


class UndefinedGainError(ConfigError):
    """A relative gain against a baseline value of zero."""


def delta_m(metrics: MetricValues, baseline: MetricValues, tasks: Mapping[str, Task]) -> float:
    """The multi-task gain, as a share: 0.02 is 2 % better than the baseline.

    Δm = mean over tasks of the mean over metrics of (-1)^(lower is better) (m - m0) / |m0|, over the metrics that the
    papers' tables count (MetricInfo.gain: mIoU and pixel accuracy, absolute and relative depth error, all five of the
    normals, accuracy, MAE) and that the baseline states. A metric that does not count (RMSE) does where a task's
    baseline states no other.

    Raises ConfigError where the baseline lacks a task, states none of its metrics, or states an unknown task or metric,
    and where a metric that it states was not measured;
    UndefinedGainError where a baseline value is 0.
    """
    for name in baseline:
        if name not in tasks:
            raise ConfigError(
                f"the baseline has metrics of an unknown task {name!r}", nearest(name, list(tasks))
            )
    gains = [
        _task_gain(name, task, metrics.get(name, {}), baseline.get(name, {})) for name, task in tasks.items()
    ]
    return sum(gains) / len(gains)


def _task_gain(name: str, task: Task, values: Mapping[str, float], reference: Mapping[str, float]) -> float:
    info = task.metric_info
    for metric in reference:
        if metric not in info:
            raise ConfigError(
                f"the baseline of task {name!r} states an unknown metric {metric!r}",
                nearest(metric, list(info)),
            )
    stated = [metric for metric in info if metric in reference]
    counted = [metric for metric in stated if info[metric].gain] or stated
    if not counted:
        raise ConfigError(
            f"the baseline states no metric of task {name!r}, so the multi-task gain is undefined",
            f"state {task.primary!r} of {name!r}, or compare with a run that has this task",
        )
    if missing := [metric for metric in counted if metric not in values]:
        raise ConfigError(
            f"{name}.{missing[0]} was not measured, which the baseline states, so the multi-task gain is undefined",
            "measure it again with this version",
        )
    return sum(_metric_gain(name, m, info[m], values[m], reference[m]) for m in counted) / len(counted)


def _metric_gain(name: str, metric: str, info: MetricInfo, value: float, reference: float) -> float:
    if reference == 0:
        raise UndefinedGainError(
            f"the baseline's {name}.{metric} is 0, so a gain relative to it is undefined",
            "compare with a baseline that was trained long enough",
        )
    gain = (value - reference) / abs(reference)
    return gain if info.higher_is_better else -gain


def mean_score(metrics: MetricValues, tasks: Mapping[str, Task]) -> float:
    """Mean over tasks of the primary metric on a scale of 0 (worst) to 1 (best), for choosing among epochs.

    A share counts as it is. An error e counts as s / (s + e): 1 at no error, 1/2 at an error of s. The scale s is the
    task's `error_scale`: the training split's standard deviation of the target, in its unit (1 where the data set does
    not state it), unless the kind has one of its own, such as 30° for normals.

    Raises DataError for a task that was not measured, as on a data set of which the split knows no label.
    """
    if missing := [name for name in tasks if name not in metrics]:
        raise DataError(
            f"{missing[0]} was not measured: no sample of the split that is its own has a known label",
            "give labels of it in that split, or take the task out of the `tasks` of that source",
        )
    return sum(_score(task, metrics[name][task.primary]) for name, task in tasks.items()) / len(tasks)


def _score(task: Task, value: float) -> float:
    if task.metric_info[task.primary].higher_is_better:
        return value
    return task.error_scale / (task.error_scale + value)


def wrong_in_words(task: Task) -> str:
    """When `judge` calls a prediction of this task wrong, such as "an error above 20 years"."""
    info = task.metric_info[task.primary]
    if not info.higher_is_better:
        separator = "" if info.unit in ("", "°") else " "
        return f"an error above {task.error_scale:.3g}{separator}{info.unit}"
    if task.target_kind == "class":
        return "another class than the target's"
    return f"{task.primary} of the image below {100 * RIGHT:.0f} %"


@dataclass(frozen=True)
class Judgment:
    """One prediction on its own: the task's primary metric of this image, and whether it counts as wrong."""

    value: float
    wrong: bool


def judge(task: Task, output: Tensor, target: Tensor) -> Judgment | None:
    """A single image's raw output (1, ...) against its target (1, ...), by the task's own metric.

    It is wrong where it scores less than one half on the scale of `mean_score`: a share below 50 %, so a class that is
    not the target's, or an error above `task.error_scale`. None where nothing of the target is known.
    """
    metrics = task.metrics()
    metrics.update(output, target)
    try:
        value = metrics.compute()[task.primary]
    except DataError:
        return None
    return Judgment(value, _score(task, value) < RIGHT) if math.isfinite(value) else None
