from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compactmtl.backends import load_target, resolve_target
from compactmtl.config import (
    dump_recipe,
    list_recipes,
    list_targets,
    load_recipe,
    resolve_recipe,
)
from compactmtl.config.recipe import DataConfig, Recipe, TaskConfig
from compactmtl.errors import ConfigError

BASE = """\
description: base
data: {name: scenes, size: [64, 64], augment: {flip: true}}
tasks:
  age: {kind: regression}
  sex: {kind: classification}
sparsity:
  strength: 1e-4
"""
CHILD = """\
extends: base.yaml
tasks:
  age: null
sparsity: null
data:
  augment: null
train:
  epochs: 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yaml").write_text(BASE, "utf-8")
    (tmp_path / "child.yaml").write_text(CHILD, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_child_takes_from_its_parent_what_it_does_not_say(folder: Path) -> None:
    recipe = load_recipe("child.yaml")
    assert list(recipe.tasks) == ["sex"]
    assert recipe.sparsity is None
    assert not recipe.data.augment.flip
    assert recipe.data.name == "scenes"
    assert recipe.train.epochs == 3


def test_every_value_knows_its_origin(folder: Path) -> None:
    origins = resolve_recipe("child.yaml", ["data.root=/faces"]).origins
    assert origins["data.name"] == "base.yaml:2"
    assert origins["tasks.sex.kind"] == "base.yaml:5"
    assert origins["train.epochs"] == "child.yaml:8"
    assert origins["sparsity"] == "child.yaml:4"  # taken away there
    assert origins["data.augment.flip"] == "child.yaml:6"
    assert origins["data.root"] == "override"
    assert origins["seed"] == "default"


def test_overrides_lie_over_everything(folder: Path) -> None:
    recipe = load_recipe("base.yaml", ["train.epochs=7", "tasks.age.weight=2", "sparsity=null"])
    assert (recipe.train.epochs, recipe.tasks["age"].weight, recipe.sparsity) == (7, 2.0, None)


def test_an_overlay_lies_over_the_recipe_and_under_the_overrides(folder: Path) -> None:
    (folder / "over.yaml").write_text("seed: 5\ntrain: {epochs: 2, max_steps: 2}\n", "utf-8")
    resolved = resolve_recipe("child.yaml", ["train.max_steps=9"], overlays=["over.yaml"])
    assert (resolved.recipe.seed, resolved.recipe.train.epochs, resolved.recipe.train.max_steps) == (5, 2, 9)
    assert resolved.origins["train.epochs"] == "over.yaml:2"
    assert resolved.name == "child"


def test_a_task_can_be_kept_alone_with_its_single_task_numbers(folder: Path) -> None:
    numbers = "single_task={age: {mae: 6}, sex: {accuracy: 0.9}}"
    recipe = resolve_recipe("base.yaml", [numbers], tasks=["age"]).recipe
    assert list(recipe.tasks) == ["age"]
    assert list(recipe.single_task) == ["age"]


@pytest.mark.parametrize(
    ("task", "hint"), [("agee", "did you mean age?"), ("zebra", "its tasks are age, sex")]
)
def test_a_task_to_keep_that_the_recipe_lacks_comes_with_the_nearest(
    folder: Path, task: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=f"no task '{task}'") as error:
        resolve_recipe("base.yaml", tasks=[task])
    assert error.value.hint == hint


def test_a_task_that_the_recipe_took_away_cannot_be_kept(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'age'"):
        resolve_recipe("child.yaml", tasks=["age"])


def test_a_wrong_override_names_itself_as_the_place(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^override: unknown key `train.epoch`"):
        load_recipe("base.yaml", ["train.epoch=7"])


def test_a_recipe_is_frozen(folder: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("base.yaml").seed = 1  # type: ignore[misc]


@pytest.mark.slow
@settings(max_examples=25)  # a whole recipe each
@given(
    description=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lr=st.floats(1e-12, 1e12, allow_subnormal=False),
    names=st.lists(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), min_size=1, max_size=4, unique=True),
    option=st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none()
    | st.sampled_from(["off", "1e-4", "null", "~", "", " a", "a: b", "#", "é"]),
)
def test_a_dumped_recipe_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, description: str, lr: float, names: list[str], option: object
) -> None:
    task = TaskConfig(kind="depth")
    recipe = Recipe.model_validate(
        {
            "description": description,
            "data": DataConfig(name="scenes", size=(8, 8), options={"x": option}),
            "tasks": dict.fromkeys(names, task),
            "train": {"optimizer": {"lr": lr}},
        }
    )
    path = tmp_path_factory.mktemp("recipe") / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    back = load_recipe(path)
    assert back == recipe
    assert list(back.tasks) == names  # their order is the order of the model's outputs


@pytest.mark.parametrize("name", [entry.name for entry in list_recipes()])
def test_every_shipped_recipe_loads_with_a_description_and_known_targets(name: str) -> None:
    resolved = resolve_recipe(name)
    assert resolved.name == name
    assert resolved.recipe.description
    for target in resolved.recipe.targets:
        assert load_target(target).description


@pytest.mark.parametrize("name", [entry.name for entry in list_targets()])
def test_every_shipped_target_loads_with_a_description(name: str) -> None:
    assert resolve_target(name).target.description


def test_the_target_that_recipes_name_by_default_is_there() -> None:
    assert load_target("onnxruntime-cpu").backend == "onnxruntime"
