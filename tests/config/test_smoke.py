"""What --smoke makes of a recipe: two steps on small pictures, unless an override says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config.smoke import STEPS, resolve_smoke

RECIPE = """
data: {name: scenes, size: [96, 128], batch_size: 16, options: {train: 8, val: 4}}
tasks: {depth: {kind: depth, head: {kind: fcn, width: 4}}}
model: {encoder: {name: test_resnet}}
train: {epochs: 50}
"""
SELECTIVE = "sparsity: {selective: {mac_reduction: 0.5, start: 0.1, end: 0.6}}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE + SELECTIVE)
    return path


def test_it_takes_two_steps_on_small_pictures(recipe: Path) -> None:
    smoke = resolve_smoke(recipe).recipe
    assert (smoke.train.epochs, smoke.train.max_steps) == (1, 2)
    assert smoke.data.size == (64, 64)
    assert smoke.data.batch_size == 2


def test_selective_shrinking_begins_and_ends_within_the_two_steps(recipe: Path) -> None:
    sparsity = resolve_smoke(recipe).recipe.sparsity
    assert sparsity is not None and sparsity.selective is not None
    assert (sparsity.selective.start, sparsity.selective.end) == (0, 1)


def test_weights_of_a_package_are_left_out_and_those_of_a_file_are_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for weights, left in (("package:efficientnet-lite0", None), ("/some.safetensors", "/some.safetensors")):
        path.write_text(RECIPE.replace("test_resnet", f"test_resnet, weights: '{weights}'"))
        assert resolve_smoke(path).recipe.model.encoder.weights == left


def test_an_override_wins_but_where_two_steps_are_asked_for(recipe: Path) -> None:
    assert resolve_smoke(recipe, ["train.max_steps=5"]).recipe.train.max_steps == 5
    assert resolve_smoke(recipe, ["train.max_steps=5"], two_steps=True).recipe.train.max_steps == 2


def test_a_batch_in_parts_has_two_images_for_each(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    for batch, parts, expected in ((16, 4, 8), (16, 1, 2), (16, 16, 16), (5, 3, 5)):
        words = [f"train.accumulate={parts}"]
        path.write_text(RECIPE.replace("batch_size: 16", f"batch_size: {batch}"))
        smoke = resolve_smoke(path, words).recipe
        assert (smoke.data.batch_size, smoke.train.accumulate) == (expected, parts)
    assert resolve_smoke(path, ["train.accumulate=2", "data.batch_size=3"]).recipe.data.batch_size == 3


def test_the_steps_are_those_of_the_overlay(recipe: Path) -> None:
    """Two places name them, the overlay and what a sweep lays over its entries."""
    plain, firm = resolve_smoke(recipe).recipe, resolve_smoke(recipe, two_steps=True).recipe
    assert plain == firm
    assert STEPS
