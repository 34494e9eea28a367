"""Where a relative path in a recipe begins: at the file that names it, or at the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import load_recipe, resolve_recipe, resolve_sweep
from compactmtl.config.load import dump_recipe
from compactmtl.config.merge import apply_overrides
from compactmtl.config.paths import HERE, check_here, here_words, is_here
from compactmtl.config.yaml import Node, Place
from compactmtl.errors import ConfigError

BASE = """
data: {name: utkface, root: photos, size: [16, 16]}
tasks:
  age: {kind: regression}
"""
EVERY = """
extends: parts/base.yaml
model: {encoder: {weights: weights/encoder.safetensors}}
distillation: {teacher: "teachers/seed{seed}"}
sparsity: {controller: {latency: {target: targets/mine.yaml, reduction: 0.5, table: table.json}}}
targets: [onnxruntime-cpu, targets/mine.yaml]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recipes, and another one to work in."""
    (tmp_path / "project" / "parts").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project" / "parts" / "base.yaml").write_text(BASE)
    (tmp_path / "project" / "mine.yaml").write_text(EVERY)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_each_path_begins_at_the_file_that_names_it(project: Path) -> None:
    recipe = load_recipe("../project/mine.yaml")
    assert recipe.data.root == str(project / "parts" / "photos")
    assert recipe.model.encoder.weights == str(project / "weights" / "encoder.safetensors")
    assert recipe.distillation is not None and recipe.sparsity is not None
    assert recipe.distillation.teacher == str(project / "teachers" / "seed{seed}")
    assert recipe.sparsity.controller is not None
    assert recipe.sparsity.controller.latency is not None
    assert recipe.sparsity.controller.latency.table == str(project / "table.json")
    assert recipe.sparsity.controller.latency.target == str(project / "targets" / "mine.yaml")
    assert recipe.targets == ("onnxruntime-cpu", str(project / "targets" / "mine.yaml"))


def test_a_path_on_the_command_line_begins_at_the_working_folder(project: Path) -> None:
    recipe = load_recipe(project / "mine.yaml", ["data.root=here", "distillation.teacher=self"])
    assert recipe.data.root == str(project.parent / "elsewhere" / "here")
    assert recipe.distillation is not None
    assert recipe.distillation.teacher == "self"


def test_teachers_of_features_are_paths_too(project: Path) -> None:
    mine = (project / "mine.yaml").read_text()
    for section, expected in (
        ("teacher: teachers/wide", {"teacher": str(project / "teachers" / "wide")}),
        ("teacher: self", {"teacher": "self"}),
        ("encoder: {weights: weights/wide.pth}", {"weights": str(project / "weights" / "wide.pth")}),
        (
            'encoder: {weights: "package:efficientnet-lite0"}',
            {"weights": "package:efficientnet-lite0"},
        ),
    ):
        lesson = f"distillation: {{teacher: null, features: {{{section}}}}}"
        (project / "taught.yaml").write_text(
            mine.replace('distillation: {teacher: "teachers/seed{seed}"}', lesson)
        )
        distillation = load_recipe(project / "taught.yaml").distillation
        assert distillation is not None and distillation.features is not None
        features = distillation.features
        found = (
            {"teacher": features.teacher}
            if features.encoder is None
            else {"weights": features.encoder.weights}
        )
        assert found == expected


def test_a_whole_path_stays(project: Path) -> None:
    assert load_recipe(project / "mine.yaml", ["data.root=/data/faces"]).data.root == "/data/faces"


def test_a_path_at_home_is_whole_for_all_that_read_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    words = ["data.root=~/faces", "model.encoder.weights=~/a.pth", "distillation.teacher=~/runs/seed{seed}"]
    recipe = load_recipe(project / "mine.yaml", words)
    assert recipe.distillation is not None
    found = (recipe.data.root, recipe.model.encoder.weights, recipe.distillation.teacher)
    assert found == ("/home/user/faces", "/home/user/a.pth", "/home/user/runs/seed{seed}")


def test_a_recipe_of_the_package_takes_the_working_folder(project: Path) -> None:
    assert load_recipe("utkface/dense").data.root == str(project.parent / "elsewhere" / "data")


def test_a_recipe_of_mine_that_extends_one_of_the_package_takes_it_too(project: Path) -> None:
    (project / "child.yaml").write_text("extends: utkface/dense\n")
    assert load_recipe(project / "child.yaml").data.root == str(project.parent / "elsewhere" / "data")


def test_what_is_resolved_is_found_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = project.parent / "resolved.yaml"
    recipe = load_recipe(project / "mine.yaml")
    written.write_text(dump_recipe(recipe))
    monkeypatch.chdir("/")
    assert load_recipe(written) == recipe


def test_a_run_of_an_older_version_takes_the_working_folder(project: Path) -> None:
    run = project / "runs" / "old"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(BASE)
    (run / "meta.json").write_text("{}")
    recorded = load_recipe(run / "recipe.yaml")
    assert recorded.data.root == str(project.parent / "elsewhere" / "photos")


def test_data_that_lies_in_the_working_folder_alone_is_refused_with_both_places(project: Path) -> None:
    (project.parent / "elsewhere" / "photos").mkdir()
    with pytest.raises(ConfigError) as error:
        load_recipe(project / "mine.yaml")
    said = str(error.value)
    assert "base.yaml:2" in said
    assert str(project / "parts" / "photos") in said
    assert str(project.parent / "elsewhere" / "photos") in said
    assert "data.root=photos" in said
    assert load_recipe(project / "mine.yaml", ["data.root=photos"]).data.root


def test_paths_of_a_sweep_begin_at_its_file(project: Path) -> None:
    (project / "sweep.yaml").write_text(
        "recipe: mine.yaml\noverrides: [data.root=faces, train.epochs=2]\n"
        "entries:\n  a: {recipe: parts/base.yaml, overrides: ['data.root = more']}\n"
        "  b: {runs: ['runs/b/seed*']}\n  c: {recipe: utkface/dense}\n"
    )
    sweep = resolve_sweep(project / "sweep.yaml").sweep
    assert sweep.recipe == str(project / "mine.yaml")
    assert sweep.overrides == (f"data.root={project / 'faces'}", "train.epochs=2")
    assert sweep.entries["a"].recipe == str(project / "parts" / "base.yaml")
    assert sweep.entries["a"].overrides == (f"data.root={project / 'more'}",)
    assert sweep.entries["b"].runs == (str(project / "runs" / "b" / "seed*"),)
    assert sweep.entries["c"].recipe == "utkface/dense"


def test_the_origin_of_a_path_is_still_the_line_that_gave_it(project: Path) -> None:
    resolved = resolve_recipe(project / "mine.yaml", ["model.encoder.weights=w.safetensors"])
    assert resolved.origins["data.root"].endswith("base.yaml:2")
    assert resolved.origins["model.encoder.weights"] == "override"


@pytest.mark.parametrize("root", ["/data", "/my data, {of} [mine]", '/it\'s #1: "a"', "null", "3"])
def test_the_place_of_data_as_words_reads_back_as_it_was(root: str) -> None:
    recipe = load_recipe("utkface/dense", ["data.workers=3", "data.cache=disk"])
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
    words = here_words(recipe)
    check_here(Path("run"), words)
    held = apply_overrides(Node({}, Place(None)), words).plain()["data"]
    assert held == {"root": root, "workers": 3, "cache": "disk"}
    assert set(HERE) == {f"data.{key}" for key in held}


@pytest.mark.parametrize(
    ("word", "here"),
    [("data.root=/x", True), ("data.workers = 0", True), ("data.cache=none", True), ("data.rooted=/x", False), ("data.root", False)],
)  # fmt: skip
def test_a_word_says_where_data_is(word: str, here: bool) -> None:
    assert is_here(word) is here
