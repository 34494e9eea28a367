"""The runs that a recipe learns from, and what their own training cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compactmtl.artifacts.run_folder import is_run
from compactmtl.config import Recipe
from compactmtl.config.distillation import OWN
from compactmtl.runs.run import Run

TEACHERS = "teachers"  # their key in meta.json


@dataclass(frozen=True)
class TeacherCost:
    """One run that another learned from: epochs and seconds of its training, validation apart."""

    path: str
    epochs: int
    seconds: float


def teacher_path(recipe: Recipe, name: str) -> Path:
    """The folder of the run that a recipe names as a teacher."""
    return Path(name.replace("{seed}", str(recipe.seed)))


def teacher_paths(recipe: Recipe) -> list[Path]:
    """The folders that a recipe names as teachers, of its outputs, features and pseudo-labels, whether runs or not."""
    names = recipe.distillation.names if recipe.distillation is not None else ()
    labeling = [one.teacher for one in recipe.data.pseudo_labels.values()]
    return [teacher_path(recipe, name) for name in (*names, *labeling) if name != OWN]


def teacher_costs(recipe: Recipe) -> list[TeacherCost]:
    """What was trained for a recipe to learn from: its teachers, and those that they learned from, each once.

    Raises ArtifactError where one is not a run.
    """
    labeling = {teacher_path(recipe, one.teacher) for one in recipe.data.pseudo_labels.values()}
    costs: dict[str, TeacherCost] = {}
    for path in teacher_paths(recipe):
        if is_run(path) or path not in labeling:  # of pseudo-labels a run's cost alone is known
            run = Run.open(path)
            for cost in (_cost(run), *(recorded_teachers(run.meta) or ())):
                costs.setdefault(cost.path, cost)
    return list(costs.values())


def _cost(run: Run) -> TeacherCost:
    log = run.log()
    epochs = {event["epoch"] for event in log if event.get("event") == "epoch"}
    seconds = next((event["seconds"] for event in reversed(log) if event.get("event") == "end"), 0.0)
    return TeacherCost(str(run.path.resolve()), len(epochs), float(seconds))


def dump_teachers(costs: list[TeacherCost]) -> list[dict[str, Any]]:
    """As meta.json has them."""
    return [asdict(cost) for cost in costs]


def recorded_teachers(meta: Mapping[str, Any]) -> tuple[TeacherCost, ...] | None:
    """What meta.json says of a run's teachers; None where an earlier version wrote it."""
    if TEACHERS not in meta:
        return None
    return tuple(TeacherCost(one["path"], one["epochs"], one["seconds"]) for one in meta[TEACHERS])
