"""What tasks may lose, as people write it, and what is wrong with it in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import resolve_recipe
from compactmtl.config.recipe import Recipe
from compactmtl.errors import ConfigError
from compactmtl.runs.identity import deciding

RECIPE = """
data: {name: scenes, size: [32, 48], holdout: 0.2}
tasks:
  depth: {kind: depth}
  normals: {kind: normals}
sparsity:
  selective: {mac_reduction: 0.5, losses: {depth: 1 %, normals: 0}}
"""


def resolved(tmp_path: Path, *overrides: str, tasks: tuple[str, ...] = ()) -> Recipe:
    path = tmp_path / "bounded.yaml"
    path.write_text(RECIPE)
    return resolve_recipe(path, list(overrides), tasks=tasks).recipe


@pytest.mark.parametrize(
    ("written", "share"),
    [("1 %", 0.01), ("0.5%", 0.005), ("0.01", 0.01), ("0", 0.0), ("99 %", 0.99), ("1e-3", 0.001)],
)
def test_a_share_may_be_written_as_a_percentage(tmp_path: Path, written: str, share: float) -> None:
    recipe = resolved(tmp_path, f"sparsity.selective.losses.depth={written}")
    assert recipe.sparsity is not None
    assert recipe.sparsity.losses == {"depth": pytest.approx(share), "normals": 0.0}


def test_a_recipe_reads_back_as_it_was_resolved(tmp_path: Path) -> None:
    recipe = resolved(tmp_path)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity.selective.losses.depht=0.01", "names 'depht', which is no task: did you mean depth?"),
        ("sparsity.selective.losses.depth=-1 %", "of at least 0"),
        ("sparsity.selective.losses.depth=101 %", "1.01 is 101 %, and a bound is less than all of it"),
        ("sparsity.selective.losses.depth=100 %", "1 is 100 %"),
        (
            "sparsity.selective.losses.depth=1",
            "1 is 100 %, and a bound is less than all of it: write a percentage as `1 %`",
        ),
        ("sparsity.selective.losses.depth=2", "2 is 200 %"),
        ("sparsity.selective.losses.depth=little", "a number"),
        ("sparsity.selective.losses.depth=one %", "expected a number before %, found 'one %'"),
        ("data.holdout=0", "data.holdout is 0: set data.holdout"),
        ("sparsity.selective.tasks_every=0", "tasks_every: 0 looks at none"),
        ("sparsity.selective.checks=0", "of at least 1"),
    ],
)
def test_what_cannot_be_kept_is_said_at_once(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolved(tmp_path, override)
    assert says in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize("section", ["controller", "prune"])
def test_other_methods_know_no_losses(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match="losses"):
        resolved(
            tmp_path,
            "sparsity.selective=null",
            f"sparsity.{section}={{mac_reduction: 0.5, losses: {{depth: 0.01}}}}",
        )


def test_a_run_of_one_task_keeps_its_own_bound(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, tasks=("normals",))
    assert recipe.sparsity is not None and recipe.sparsity.losses == {"normals": 0.0}


def test_a_key_at_its_default_makes_no_run_foreign(tmp_path: Path) -> None:
    keys = deciding(resolved(tmp_path), defaults=False)
    assert "sparsity.selective.tasks_every" not in keys and "sparsity.selective.checks" not in keys
