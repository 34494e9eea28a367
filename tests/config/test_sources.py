"""A recipe of several data sets: what it may say, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compactmtl.config import dump_recipe, load_recipe
from compactmtl.config.load import resolve_recipe
from compactmtl.config.paths import here_words, is_here
from compactmtl.config.recipe import DataConfig
from compactmtl.config.smoke import resolve_smoke
from compactmtl.config.sources import as_deployed, of_source
from compactmtl.errors import ConfigError
from compactmtl.runs.identity import recipe_hash

FACES: dict[str, Any] = {"name": "utkface", "tasks": ["age"]}
CLOTHES: dict[str, Any] = {"name": "ccp", "tasks": ["segmentation"]}


def write(folder: Path, sources: Any = (FACES, CLOTHES), **data: Any) -> Path:
    """A recipe of two data sets."""
    path = folder / "mine.yaml"
    tasks = {"age": {"kind": "regression"}, "segmentation": {"kind": "segmentation"}}
    given = {"root": "data", "size": [32, 32], "batch_size": 4, "sources": list(sources)} | data
    (folder / "data").mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": given, "tasks": tasks}, indent=1))
    return path


def test_a_recipe_of_sources_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.data.name == "utkface+ccp"
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "again.yaml")
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_one_data_set_is_written_as_before_there_could_be_several(tmp_path: Path) -> None:
    recipe = load_recipe("utkface/dense")
    dumped = recipe.data.model_dump(mode="json")
    assert next(iter(dumped)) == "name"
    assert not {"sources", "mixing"} & set(dumped)
    # as the version before wrote it: runs of then go on
    assert recipe_hash(recipe) == "ef33a96519afd37bfb1d7a9a5850b8e299ce06fda4b84b10e5ea031f812c87df"


@pytest.mark.parametrize(
    ("change", "key", "mend"),
    [
        ({"batch_size": 1}, "data.batch_size", "raise it"),
        ({"sources": [FACES, CLOTHES | {"tasks": ["parsing"]}]}, "tasks.segmentation", "name it in the `tasks`"),
        ({"sources": [FACES, CLOTHES | {"tasks": ["segmentatoin"]}]}, "ccp names segmentatoin, which is no task", "name it"),
        ({"sources": [FACES, CLOTHES, CLOTHES | {"alias": "b", "tasks": ["x"]}]}, "data.sources: b", "its tasks are age"),
        ({"sources": [FACES, CLOTHES, FACES]}, "two are called 'utkface'", "alias"),
        ({"sources": [FACES | {"mean": [0.5]}, CLOTHES]}, "data.channels is 3", "one value for each"),
        ({"sources": [FACES | {"channels": 1}, CLOTHES]}, "utkface has channels 1, data.channels is 3", "set data.channels"),
        ({"sources": [FACES | {"tasks": []}, CLOTHES]}, "data.sources.0.tasks", "at least 1"),
        ({"sources": [FACES | {"tasks": ["age", "age"]}, CLOTHES]}, "a task twice", "once"),
        ({"sources": [FACES | {"targets": {"ag": "x"}}, CLOTHES]}, "targets of ag", "take it out"),
        ({"sources": [FACES | {"size": [16, 16]}, CLOTHES]}, "data.mixing.batches", "alternating"),
        ({"mixing": {"by": "shares", "shares": {"utkface": 0.5, "ccp": 0.6}}}, "their sum is 1.1", "make it 1"),
        ({"mixing": {"by": "shares", "shares": {"utkface": 0.5, "cp": 0.5}}}, "cp is no source", "utkface, ccp"),
        ({"mixing": {"by": "shares", "shares": {"utkface": 1.0}}}, "none of ccp", "give one"),
        ({"mixing": {"shares": {"utkface": 1.0}}}, "data.mixing.shares", "by: shares"),
        ({"mixing": {"epoch": "faces"}}, "data.mixing.epoch: 'faces'", "number of steps"),
        ({"name": "utkface"}, "data.name", "leave it out"),
        ({"options": {"classes": "all"}}, "data.options", "move them there"),
        *(
            ({"sources": [FACES | {"alias": name}, CLOTHES]}, f"{name!r} is no name of a source", "give the source an `alias`")
            for name in ("a@b", "a:b", "a.b", "a/b", "a b", "a,b", "a=b")
        ),
    ],
)  # fmt: skip
def test_bad_input_names_key_and_mend(tmp_path: Path, change: dict[str, Any], key: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, **change))
    assert caught.value.exit_code == 2
    assert key in caught.value.message
    assert mend in str(caught.value)
    assert f"{tmp_path / 'mine.yaml'}:" in caught.value.message


def test_mixing_needs_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.mixing needs `data\.sources`"):
        load_recipe("utkface/dense", ["data.mixing.by=sqrt"])


def test_a_task_says_its_target_in_the_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`targets: \{age: age_bin\}` in the source"):
        load_recipe(write(tmp_path), ["tasks.age.target=age_bin"])


def test_paths_begin_at_the_recipes_folder_and_move_by_override(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    path = write(tmp_path, [FACES | {"root": "faces"}, CLOTHES])
    recipe = load_recipe(path)
    assert recipe.data.root == str(tmp_path / "data")
    assert recipe.data.sources[0].root == str(tmp_path / "faces")
    with pytest.raises(ConfigError, match=r"'utkfac' is none of .*: utkface, ccp") as caught:
        load_recipe(path, ["data.sources.utkfac.root=/elsewhere"])
    assert "did you mean utkface" in caught.value.hint
    moved = load_recipe(path, ["data.sources.utkface.root=/elsewhere"])
    assert [source.root for source in moved.data.sources] == ["/elsewhere", None]
    assert recipe_hash(moved) == recipe_hash(recipe)
    assert here_words(moved)[-1] == 'data.sources.utkface.root="/elsewhere"'
    assert all(is_here(word) for word in here_words(moved))


def test_with_some_tasks_alone_the_sources_of_others_go(tmp_path: Path) -> None:
    mixing = {"by": "shares", "shares": {"utkface": 0.25, "ccp": 0.75}, "epoch": "utkface"}
    recipe = resolve_recipe(write(tmp_path, mixing=mixing), tasks=["segmentation"]).recipe
    assert [source.name for source in recipe.data.sources] == ["ccp"]
    assert recipe.data.mixing.shares == {"ccp": 1.0}
    assert recipe.data.mixing.epoch is None


def test_a_smoke_batch_has_room_for_every_source(tmp_path: Path) -> None:
    third = FACES | {"alias": "more"}
    assert resolve_smoke(write(tmp_path, [FACES, CLOTHES, third])).recipe.data.batch_size == 3
    assert resolve_smoke(write(tmp_path)).recipe.data.batch_size == 2


def test_a_source_alone_has_its_own_where_it_says_so() -> None:
    data = DataConfig.model_validate(
        {
            "size": (32, 32),
            "root": "/data",
            "batch_size": 4,
            "augment": {"flip": True},
            "mixing": {"batches": "alternating"},
            "sources": (
                FACES
                | {"tasks": ("age",), "size": (16, 16), "augment": {"shift": 2}, "mean": (0.5, 0.5, 0.5)},
                CLOTHES | {"tasks": ("segmentation",), "root": "/clothes"},
            ),
        }
    )
    faces, clothes = (of_source(data, source, deployed=False) for source in data.sources)
    assert (faces.name, faces.root, faces.size, faces.mean) == ("utkface", "/data", (16, 16), (0.5,) * 3)
    assert (faces.augment.shift, faces.augment.flip, faces.sources) == (2, False, ())
    assert (clothes.root, clothes.size, clothes.augment) == ("/clothes", (32, 32), data.augment)
    assert of_source(data, data.sources[0], deployed=True).size == (32, 32)
    assert as_deployed(data).sources[0].size is None


def test_numbers_by_source_leave_with_their_task(tmp_path: Path) -> None:
    """single_task names a task of two sources on each of them, as metrics do."""
    numbers = {"age@utkface": {"mae": 5.0}, "age@more": {"mae": 6.0}, "segmentation": {"miou": 0.4}}
    path = write(tmp_path, [FACES, FACES | {"alias": "more"}, CLOTHES])
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"single_task": numbers}))
    assert list(load_recipe(path).single_task) == list(numbers)
    assert list(resolve_recipe(path, tasks=["segmentation"]).recipe.single_task) == ["segmentation"]
    assert list(resolve_recipe(path, tasks=["age"]).recipe.single_task) == ["age@utkface", "age@more"]


def test_images_of_two_sources_are_not_mixed_where_each_has_its_own_statistics(tmp_path: Path) -> None:
    joined = write(tmp_path, mixing={"batch_norm": "per_source"})
    with pytest.raises(ConfigError, match=r"batch_norm: per_source does not go with train\.mixup"):
        load_recipe(joined, ["train.mixup=0.2"])
    alternating = write(tmp_path, mixing={"batch_norm": "per_source", "batches": "alternating"})
    assert load_recipe(alternating, ["train.mixup=0.2"]).train.mixup == 0.2  # a batch is of one source
    shared = write(tmp_path)
    assert load_recipe(shared, ["train.mixup=0.2"]).train.mixup == 0.2
