"""Some tasks of a trained run as a run of its own: the other heads leave, and surgery can remove what only they read.

Its folder holds the run's recipe, which says how the network was trained, and the whole best checkpoint; meta.json says
which tasks are in. Every later stage reads it as it reads any run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from compactmtl.artifacts.files import new_folder, write_text
from compactmtl.artifacts.layout import BEST, CHECKPOINTS, DATA, LOG, META, RECIPE, SUBSET, SUBSET_OF, WEIGHTS
from compactmtl.artifacts.lock import exclusive, writing
from compactmtl.artifacts.run_folder import is_run
from compactmtl.artifacts.versions import resolve
from compactmtl.errors import ConfigError
from compactmtl.runs.checkpoint import checked_weights, load_summary, save_best
from compactmtl.runs.run import Run
from compactmtl.tasks import Task
from compactmtl.tasks.by_source import measured, task_of
from compactmtl.tasks.common import nearest
from compactmtl.tasks.gain import delta_m, mean_score
from compactmtl.verify.result import TaskMetrics


def check_tasks(run: Run, tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks in the run's own order. Raises ConfigError for one that the run lacks, for none, and for all of them."""
    for task in tasks:
        if task not in run.tasks:
            raise ConfigError(f"{run.path} has no task {task!r}", nearest(task, list(run.tasks)))
    chosen = tuple(name for name in run.tasks if name in tasks)
    if not chosen:
        raise ConfigError("no task is named", f"name some of {', '.join(run.tasks)}")
    if len(chosen) == len(run.tasks):
        raise ConfigError(
            f"{', '.join(chosen)} are all tasks of {run.path}: nothing would leave",
            "name fewer, or leave the option out",
        )
    return chosen


def subset_path(run: Run, tasks: Sequence[str]) -> Path:
    """Where a subset of a run's tasks is kept: beside the run, such as runs/rooms-depth-normals of runs/rooms."""
    whole = run.path.resolve()
    return whole.with_name("-".join([whole.name, *tasks]))


def subset_run(
    run: Run, tasks: Sequence[str], out: str | Path | None = None, overrides: Sequence[str] = ()
) -> Run:
    """A run with some tasks of `run` alone, from its best checkpoint.

    One that is there already is taken as it is; an older one, of an earlier checkpoint, is replaced with all that was made of it.
    Training's metrics of these tasks come along.

    Args:
        run: a run with a best checkpoint.
        tasks: names of some of its tasks, in any order.
        out: the new run's folder; by default that of `subset_path`.
        overrides: as `Run.open` takes them, for the run that is returned.

    Raises:
        ConfigError: for tasks that `check_tasks` refuses, and where `out` holds anything but a subset of this run.
        ArtifactError: where the run has no checkpoint yet, or a damaged one.
        HeldError: where another process writes into either folder.
    """
    chosen = check_tasks(run, tasks)
    path = Path(out) if out is not None else subset_path(run, chosen)
    if not _is_current(run, path, chosen):
        _write(run, path, chosen)
    return Run.open(path, overrides)


def _is_current(run: Run, path: Path, chosen: Sequence[str]) -> bool:
    """Whether `path` holds these tasks of the run's best checkpoint. Raises ConfigError where it holds something else."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    meta = Run.open(path).meta if is_run(path) else {}
    source = meta.get(SUBSET_OF) or {}
    if source.get("run") != run.name or meta.get(SUBSET) != list(chosen):
        raise ConfigError(
            f"{path} exists and is not {', '.join(chosen)} of {run.path}", "give another folder with --out"
        )
    return bool(source.get("weights") == checked_weights(run.path / CHECKPOINTS / BEST))


@exclusive("a subset of its tasks")
def _write(run: Run, path: Path, chosen: Sequence[str]) -> None:
    source = run.path / CHECKPOINTS / BEST
    weights = checked_weights(source)
    everything, kept = run.tasks, {name: run.tasks[name] for name in chosen}
    summary = _restricted(load_summary(source), everything, kept)
    events = [_restricted(event, everything, kept) for event in run.log()]
    for event, metrics in [(summary, summary["metrics"]), *((event, event.get("val")) for event in events)]:
        if "score" in event and metrics:
            gain, event["score"] = _scores(run, metrics, kept)
            if "delta_m" in event:
                event["delta_m"] = gain
    if path.exists():
        with writing(path, "its replacing"):  # whoever writes into it goes first
            pass
    with new_folder(path) as folder:
        save_best(folder / CHECKPOINTS / BEST, load_file(resolve(source) / WEIGHTS), summary)
        made_of = {"run": run.name, "weights": weights}
        meta = {**run.meta, SUBSET: list(chosen), SUBSET_OF: made_of}
        write_text(folder / META, json.dumps(meta, indent=2) + "\n")
        for name in (DATA, RECIPE):
            if (run.path / name).is_file():
                write_text(folder / name, (run.path / name).read_text("utf-8"))
        write_text(folder / LOG, "".join(f"{json.dumps(event)}\n" for event in events))


def _scores(run: Run, metrics: TaskMetrics, kept: Mapping[str, Task]) -> tuple[float | None, float]:
    """Δm against the recipe's single-task numbers where it states some, and what an epoch is chosen by, of these tasks."""
    tasks = measured(kept, metrics)
    single = {name: numbers for name, numbers in run.recipe.single_task.items() if task_of(name) in kept}
    gain = delta_m(metrics, single, tasks) if single else None
    return gain, mean_score(metrics, tasks) if gain is None else gain


def _restricted(
    values: Mapping[str, Any], everything: Mapping[str, Task], kept: Mapping[str, Task]
) -> dict[str, Any]:
    """The values without those of tasks that leave, wherever they stand under a task's name."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            by_task = bool(value) and {task_of(name) for name in value} <= set(everything)
            value = {name: one for name, one in value.items() if task_of(name) in kept} if by_task else value
            found[key] = value if by_task else _restricted(value, everything, kept)
        else:
            found[key] = value
    return found
