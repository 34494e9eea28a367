"""Teachers of unknown labels in a recipe: what it may say, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compactmtl.config import dump_recipe, load_recipe
from compactmtl.config.load import resolve_recipe
from compactmtl.errors import ConfigError
from compactmtl.runs.identity import recipe_differences, recipe_hash

RUN: dict[str, Any] = {"teacher": "runs/seed{seed}", "agreement": 5.0}
FILE: dict[str, Any] = {
    "teacher": "net.onnx",
    "confidence": 0.9,
    "mean": [0.5],
    "std": [0.2],
    "size": [32, 32],
}


def write(folder: Path, tasks: dict[str, Any] | None = None, **teachers: Any) -> Path:
    path = folder / "mine.yaml"
    for place in ("runs", "data"):
        (folder / place).mkdir(exist_ok=True)
    (folder / "net.onnx").touch()
    given = tasks or {"age": {"kind": "regression"}, "gender": {"kind": "classification"}}
    data = {"name": "utkface", "root": "data", "size": [32, 32], "pseudo_labels": teachers}
    path.write_text(json.dumps({"data": data, "tasks": given}, indent=1))
    return path


def test_teachers_read_back_equal_and_decide_the_result(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, age=RUN, gender=FILE))
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    plain = load_recipe(write(tmp_path))
    assert recipe_hash(plain) != recipe_hash(recipe)
    assert any("pseudo_labels.age.agreement" in line for line in recipe_differences(plain, recipe))


def test_without_teachers_a_recipe_is_written_as_before_there_could_be_any(tmp_path: Path) -> None:
    dumped = load_recipe(write(tmp_path)).data.model_dump(mode="json")
    assert "pseudo_labels" not in dumped


def test_a_path_begins_at_the_recipes_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, age=RUN, gender=FILE))
    assert recipe.data.pseudo_labels["age"].teacher == str(tmp_path / "runs" / "seed{seed}")
    assert recipe.data.pseudo_labels["gender"].teacher == str(tmp_path / "net.onnx")
    moved = load_recipe(write(tmp_path, age=RUN), ["data.pseudo_labels.age.teacher=/elsewhere"])
    assert moved.data.pseudo_labels["age"].teacher == "/elsewhere"


def test_a_task_that_is_left_out_takes_its_teacher_along(tmp_path: Path) -> None:
    path = write(tmp_path, age=RUN, gender=FILE)
    recipe = resolve_recipe(path, tasks=["gender"]).recipe
    assert list(recipe.data.pseudo_labels) == ["gender"]
    assert list(load_recipe(path, ["data.pseudo_labels.age=null"]).data.pseudo_labels) == ["gender"]


@pytest.mark.parametrize(
    ("teachers", "key", "mend"),
    [
        ({"ages": RUN}, "data.pseudo_labels.ages", "its tasks are age, gender"),
        ({"age": {"confidence": 0.9}}, "`data.pseudo_labels.age.teacher` is missing", "give"),
        ({"age": RUN | {"confidence": 0.9}}, "agreement: confidence is for kinds with probabilities", "one of the two"),
        ({"gender": FILE | {"confidence": 1.5}}, "data.pseudo_labels.gender.confidence", "at most 1"),
        ({"gender": FILE | {"confidence": 0}}, "data.pseudo_labels.gender.confidence", "greater than 0"),
        ({"age": RUN | {"agreement": 0}}, "data.pseudo_labels.age.agreement", "greater than 0"),
        ({"age": RUN | {"mean": [0.5]}}, "mean: a run and a bundle say it themselves", "leave it out"),
        ({"age": RUN | {"size": [8, 8]}}, "size: a run and a bundle say it themselves", "leave it out"),
        ({"gender": FILE | {"values": "class index"}}, "a class index has no probability", "leave confidence out"),
        ({"gender": FILE | {"values": "scores"}}, "data.pseudo_labels.gender.values", "logits"),
        ({"gender": FILE | {"size": [0, 8]}}, "data.pseudo_labels.gender.size", "at least 1"),
        ({"gender": FILE | {"confidense": 0.5}}, "confidense", "confidence"),
    ],
)  # fmt: skip
def test_bad_input_names_key_and_mend(tmp_path: Path, teachers: Any, key: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, **teachers))
    assert caught.value.exit_code == 2
    assert key in caught.value.message
    assert mend in str(caught.value)
    assert f"{tmp_path / 'mine.yaml'}:" in caught.value.message


def test_two_teachers_of_one_target_are_refused(tmp_path: Path) -> None:
    tasks = {"age": {"kind": "regression"}, "years": {"kind": "regression", "target": "age"}}
    with pytest.raises(ConfigError, match="age and years learn from one target, 'age'"):
        load_recipe(write(tmp_path, tasks, age=RUN, years=RUN))
