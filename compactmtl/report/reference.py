"""What Δm is against: a baseline run, single-task runs over their seeds, or a recipe's own numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from compactmtl.errors import ConfigError, command
from compactmtl.report.model import RunView
from compactmtl.verify.result import TaskMetrics

if TYPE_CHECKING:
    from compactmtl.runs import Run

SINGLE: Final = "single"
Single = Literal["single"]


@dataclass(frozen=True)
class Reference:
    """The metrics that Δm is against, and what they are of.

    With `by_seed` each run is held against the baseline's of its own seed, so that the seed's luck drops out.
    """

    metrics: TaskMetrics
    label: str
    by_seed: Mapping[int, TaskMetrics] | None = None

    def at(self, seed: int) -> TaskMetrics | None:
        """What a run of this seed is held against; none where the baseline has no run of it."""
        return self.metrics if self.by_seed is None else self.by_seed.get(seed)


def split_single(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The multi-task runs and the single-task runs among `runs`, each in their order.

    Single-task runs of tasks that no multi-task run has are left out. Raises ConfigError where either kind is missing,
    where a task of a multi-task run has no single-task run, or where the single-task runs of a task differ in more
    than their seed, so that it is not clear which are the baseline.
    """
    subjects = [run for run in runs if len(run.tasks) > 1]
    singles = [run for run in runs if len(run.tasks) == 1]
    if not singles:
        raise ConfigError(
            "--baseline single needs single-task runs, and every run has several tasks",
            "name one for each task too; `compactmtl train RECIPE --task NAME` trains it",
        )
    if not subjects:
        raise ConfigError(
            "every run has a single task, so there is nothing to compare with them",
            "name at least one run of several tasks",
        )
    needed = list(dict.fromkeys(task for run in subjects for task in run.tasks))
    covered = {task for run in singles for task in run.tasks}
    missing = [task for task in needed if task not in covered]
    if missing:
        raise ConfigError(
            f"--baseline single: no run of {' or '.join(missing)} alone",
            "name one; " + "; ".join(f"`{command('train', 'RECIPE', '--task', task)}`" for task in missing),
        )
    singles = [run for run in singles if set(run.tasks) <= set(needed)]
    _check_alike(singles)
    return subjects, singles


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise ConfigError where runs share no task, or not the data sets: those of a single task are some of another's."""
    first, seen = runs[0], set(runs[0].tasks)
    for run in runs[1:]:
        one, other = run.recipe.data.names, first.recipe.data.names
        if not (one <= other or other <= one):
            raise ConfigError(
                f"{run.path} was trained on {run.recipe.data.name}, {first.path} on {first.recipe.data.name}",
                "a report compares runs on one data set; make one report for each",
            )
        if not set(run.tasks) & seen:
            raise ConfigError(
                f"{run.path} and {first.path} have no task in common "
                f"({', '.join(run.tasks)}; {', '.join(first.tasks)})",
                "compare runs that share at least one task",
            )
        seen |= set(run.tasks)


def of_single_runs(views: Sequence[RunView]) -> Reference:
    """Each task's metrics over its single-task runs as trained: the mean over seeds."""
    return Reference(_mean(views), "single-task networks")


def of_seeds(views: Sequence[RunView], label: str) -> Reference:
    """The metrics of a baseline's runs as trained, seed by seed: the mean where several share one."""
    seeds: dict[int, list[RunView]] = {}
    for view in views:
        seeds.setdefault(view.provenance.seed, []).append(view)
    return Reference(_mean(views), label, {seed: _mean(group) for seed, group in seeds.items()})


def _mean(views: Sequence[RunView]) -> TaskMetrics:
    values_of: dict[str, dict[str, list[float]]] = {}
    for view in views:
        for task, metrics in _trained(view).items():
            for metric, value in metrics.items():
                values_of.setdefault(task, {}).setdefault(metric, []).append(value)
    return {
        task: {metric: statistics.fmean(values) for metric, values in metrics.items()}
        for task, metrics in values_of.items()
    }


def of_baseline(view: RunView) -> Reference | None:
    """The baseline run's metrics as trained, where they are known."""
    return None if view.trained.metrics is None else Reference(view.trained.metrics, view.name)


def of_recipes(runs: Sequence[Run]) -> Reference | None:
    """The single-task numbers that every run's recipe states alike."""
    stated = [run.recipe.single_task for run in runs]
    if stated[0] and all(numbers == stated[0] for numbers in stated):
        return Reference(stated[0], "the recipe's single-task numbers")
    return None


def settings(run: Run) -> dict[str, Any]:
    """What makes two runs the same experiment: all that decides the result but the seed, and how it is compacted."""
    from compactmtl.runs.identity import deciding

    values = {key: value for key, value in deciding(run.recipe).items() if key != "seed"}
    align = run.recipe.surgery.align
    targets = ", ".join(run.recipe.targets)
    return values | {"surgery.align": f"auto, of {targets}" if align == "auto" else align}


def _trained(view: RunView) -> Mapping[str, Mapping[str, float]]:
    if view.trained.metrics is None:
        raise ConfigError(
            f"{view.path}: no metrics of this run on the val split, so it is no baseline",
            "set data.root to where its data is, or train it again",
        )
    return view.trained.metrics


def _check_alike(singles: Sequence[Run]) -> None:
    """Runs of one task must be seeds of one experiment; those of different tasks may be set up apart."""
    first: dict[str, Run] = {}
    for run in singles:
        (task,) = run.tasks
        one, other = settings(first.setdefault(task, run)), settings(run)
        differing = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        if differing:
            key = differing[0]
            raise ConfigError(
                f"--baseline single: {first[task].path} and {run.path} differ in more than their seed "
                f"({key}: {one.get(key)!r} and {other.get(key)!r})",
                f"name the runs of {task} alone that are the baseline, and no others",
            )
