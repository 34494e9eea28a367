"""data.inputs: what a recipe says of several inputs, and that one of a single picture reads as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compactmtl.config import dump_recipe, resolve_recipe
from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Preprocessing, Vector
from compactmtl.data.description import FolderDescription
from compactmtl.errors import ConfigError
from compactmtl.export.record import Golden, Training
from compactmtl.runs.identity import deciding
from tests.support.own_inputs import RECIPE

ONE = """
data: {name: scenes, size: [32, 48]}
tasks: {depth: {kind: depth}}
"""


def resolved(place: Path, text: str, *words: str) -> Any:
    path = place / "recipe.yaml"
    path.write_text(text)
    return resolve_recipe(path, words).recipe


def test_a_recipe_of_one_picture_says_nothing_of_inputs(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, ONE)
    assert "inputs" not in dump_recipe(recipe)
    assert not any("inputs" in key for key in deciding(recipe))
    assert list(recipe.data.given) == [recipe.data.first] == ["image"] and not recipe.data.others
    assert recipe.data.picture.mean == recipe.data.mean


def test_several_inputs_are_kept_with_their_values(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, RECIPE)
    data = recipe.data
    assert list(data.given) == ["rgb", "depth", "camera"] and data.first == "rgb"
    assert data.inputs["rgb"].mean == (0.485, 0.456, 0.406)
    assert data.inputs["camera"].std == (0.3, 1.0, 1.0)
    assert [one.colored for one in data.inputs.values()] == [True, False, False]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert resolve_recipe(tmp_path / "again.yaml").recipe == recipe
    other = resolved(tmp_path, RECIPE, "data.inputs.depth.range=[0,5000]")
    assert deciding(other) != deciding(recipe)


def test_defaults_follow_kind_and_channels() -> None:
    inputs = {"far": {"channels": 2}, "pose": {"kind": "vector", "channels": 2}}
    data = DataConfig.model_validate({"name": "a:B", "size": (8, 8), "inputs": inputs})
    assert data.inputs["far"].mean == (0.449, 0.449) and data.inputs["far"].std == (0.226, 0.226)
    assert data.inputs["pose"].mean == (0.0, 0.0) and data.inputs["pose"].std == (1.0, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.inputs={a-b: {}}"], "cannot be the name of an argument"),
        (["data.inputs={k: {kind: vector, channels: 3}}"], "inputs names no picture"),
        (["data.inputs.camera.range=[0,1]"], "range is of a picture's file"),
        (["data.inputs.camera.color=true"], "color is of a picture"),
        (["data.inputs.depth.range=[5,5]"], "range needs low < high"),
        (["data.inputs.depth.mean=[0.5,0.5]"], "mean needs one value for each of the 1 channels, found 2"),
        (["data.channels=1"], "channels is of a recipe with one picture; give it in inputs.rgb.channels"),
        (["data.range=[0,9]"], "range is of a recipe with one picture"),
        (["data.inputs.depth.chanels=1"], "unknown key `data.inputs.depth.chanels`"),
        (
            ["model.factory=null", "model.encoder.name=resnet10t"],
            "model.encoder takes one picture, and rgb, depth, camera are named",
        ),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    words = ["data.inputs=null", *words] if words[0].startswith("data.inputs={") else words
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        resolved(tmp_path, RECIPE, *words)


def test_no_file_of_one_picture_has_the_new_keys() -> None:
    """They are hashed and compared: the disk caches of a folder by its description, bundles by their bundle.json."""
    described = FolderDescription.model_validate({"targets": {"depth": {"kind": "depth"}}})
    assert "inputs" not in described.model_dump(mode="json")
    trained = Training(tasks={}, preprocessing=None)
    assert set(trained.model_dump(mode="json")) == {"tasks", "preprocessing"}
    golden = Golden(picture=None, arrays="golden.npz", tensors={}, values={}, made_by="torch")
    assert "inputs" not in golden.model_dump(mode="json")


def test_what_several_inputs_are_made_by_reads_back_equal() -> None:
    rules = {"rgb": Preprocessing((8, 9)), "camera": Vector((1.0,), (2.0,))}
    trained = Training(tasks={}, preprocessing=None, inputs=rules)
    assert Training.model_validate_json(trained.model_dump_json()).inputs == rules


def test_several_data_sets_give_one_picture_each(tmp_path: Path) -> None:
    sources = "data.sources=[{name: scenes, tasks: [kind, focal]}, {name: utkface, tasks: [focal]}]"
    with pytest.raises(ConfigError, match=r"several data sets \(data\.sources\) give one picture each"):
        resolved(tmp_path, RECIPE, 'data.name=""', sources)
