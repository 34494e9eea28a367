"""What a run's teachers cost: their own epochs and seconds, and those of the teachers that they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compactmtl.config import resolve_recipe
from compactmtl.config.recipe import DistillationConfig, Recipe
from compactmtl.errors import ArtifactError
from compactmtl.runs.teachers import TeacherCost, dump_teachers, recorded_teachers, teacher_costs
from tests.support.real_runs import SCENES, write_run


def taught(tmp_path: Path, **section: object) -> Recipe:
    path = tmp_path / "taught.yaml"
    path.write_text(SCENES)
    recipe = resolve_recipe(path, ["seed=3"]).recipe
    return recipe.model_copy(update={"distillation": DistillationConfig.model_validate(section)})


def train(folder: Path, epochs: int, seconds: float, teachers: list[TeacherCost]) -> None:
    """A finished run of so many epochs, one of which was logged twice over an interruption."""
    run = write_run(folder)
    events = [{"event": "epoch", "epoch": number} for number in [1, *range(1, epochs + 1)]]
    lines = [*events, {"event": "end", "seconds": seconds}]
    (run.path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    meta = json.loads((run.path / "meta.json").read_text())
    (run.path / "meta.json").write_text(json.dumps({**meta, "teachers": dump_teachers(teachers)}))


@pytest.mark.slow  # writes runs
def test_teachers_and_theirs_are_counted_once_each(tmp_path: Path) -> None:
    first = TeacherCost(str(tmp_path / "first"), 5, 50.0)
    train(tmp_path / "seed3", 2, 20.0, [first])
    train(tmp_path / "other", 7, 70.0, [first])
    recipe = taught(
        tmp_path, teacher=f"{tmp_path}/seed{{seed}}", features={"teacher": str(tmp_path / "other")}
    )
    costs = teacher_costs(recipe)
    assert costs == [
        TeacherCost(str(tmp_path / "seed3"), 2, 20.0),
        first,
        TeacherCost(str(tmp_path / "other"), 7, 70.0),
    ]
    assert recorded_teachers({"teachers": json.loads(json.dumps(dump_teachers(costs)))}) == tuple(costs)
    assert recorded_teachers({}) is None


def test_a_network_that_teaches_itself_costs_nothing_more_and_a_missing_teacher_is_named(
    tmp_path: Path,
) -> None:
    assert teacher_costs(taught(tmp_path, teacher="self")) == []
    with pytest.raises(ArtifactError, match="none is not a run"):
        teacher_costs(taught(tmp_path, teacher=str(tmp_path / "none")))
