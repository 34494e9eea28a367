"""Sweeps are found beside the recipes, by a name of their own, and checked when they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import list_recipes, list_sweeps, resolve_recipe, resolve_sweep
from compactmtl.errors import ConfigError
from compactmtl.sweep import plan_jobs

ENTRIES = "entries:\n  plain: {}\n  wide: {overrides: [train.epochs=3]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_sweep_is_no_recipe_and_a_recipe_no_sweep() -> None:
    sweeps, recipes = ({entry.name for entry in found} for found in (list_sweeps(), list_recipes()))
    assert "utkface/overparam" in sweeps
    assert not any("sweeps" in name for name in recipes)
    assert resolve_sweep("utkface/overparam").name == "utkface/overparam"


@pytest.mark.parametrize("entry", list_sweeps(), ids=lambda entry: entry.name)
def test_every_sweep_resolves_each_of_its_recipes(entry: object) -> None:
    name = getattr(entry, "name", "")
    sweep = resolve_sweep(name).sweep
    assert sweep.description
    assert plan_jobs(sweep, Path("runs"), seeds=[0])


def test_jobs_go_seed_by_seed_with_overrides_in_order(tmp_path: Path) -> None:
    sweep = resolve_sweep(
        write(
            tmp_path, "recipe: demo\nseeds: [3, 5]\noverrides: [train.epochs=9, train.clip=1.0]\n" + ENTRIES
        )
    ).sweep
    jobs = plan_jobs(sweep, tmp_path, ["train.clip=2.0"])
    assert [(job.seed, job.entry) for job in jobs] == [(3, "plain"), (3, "wide"), (5, "plain"), (5, "wide")]
    assert [job.resolved.recipe.train.epochs for job in jobs[:2]] == [9, 3]
    assert all(job.resolved.recipe.train.clip == 2.0 for job in jobs)
    assert [job.resolved.recipe.seed for job in jobs] == [3, 3, 5, 5]
    assert jobs[1].path == tmp_path / "wide" / "seed3"


def test_some_entries_and_seeds_alone(tmp_path: Path) -> None:
    sweep = resolve_sweep(write(tmp_path, "recipe: demo\n" + ENTRIES)).sweep
    jobs = plan_jobs(sweep, tmp_path, only=["wide"], seeds=[7])
    assert [(job.entry, job.seed) for job in jobs] == [("wide", 7)]
    with pytest.raises(ConfigError, match="no entry 'wild'"):
        plan_jobs(sweep, tmp_path, only=["wild"])


def test_a_task_alone(tmp_path: Path) -> None:
    text = "recipe: scenes/dense\nentries:\n  depth: {tasks: [depth]}\n"
    (job, *_) = plan_jobs(resolve_sweep(write(tmp_path, text)).sweep, tmp_path)
    assert list(job.resolved.recipe.tasks) == ["depth"]


def test_two_steps_whatever_an_entry_asks_for(tmp_path: Path) -> None:
    sweep = resolve_sweep(write(tmp_path, "recipe: demo\n" + ENTRIES)).sweep
    jobs = plan_jobs(sweep, tmp_path, smoke=True)
    assert all((j.resolved.recipe.train.max_steps, j.resolved.recipe.train.epochs) == (2, 1) for j in jobs)
    assert resolve_recipe("demo").recipe.train.max_steps is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: demo\nbaseline: plan\n" + ENTRIES, "baseline 'plan' is none of the entries plain, wide"),
        ("recipe: demo\nseeds: []\n" + ENTRIES, "at least 1"),
        ("recipe: demo\nseeds: [1, 1]\n" + ENTRIES, "one twice"),
        (ENTRIES, "entries.plain: no recipe"),
        ("recipe: demo\nentries:\n  a/b: {}\n", "letters, digits"),
        ("recipe: demo\nentries:\n  a: {runs: [x], overrides: [seed=1]}\n", "not both"),
        ("recipe: demo\nentries:\n  a: {recipes: x}\n", "unknown key"),
        ("recipe: demo\nentries:\n  a: {against: b}\n", "'b' is none of the entries"),
    ],
)
def test_a_wrong_sweep_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_sweep(write(tmp_path, text))


def test_an_override_that_does_not_fit_names_the_entry(tmp_path: Path) -> None:
    sweep = resolve_sweep(
        write(tmp_path, "recipe: demo\nentries:\n  a: {overrides: [train.epoch=3]}\n")
    ).sweep
    with pytest.raises(ConfigError, match=r"entry a: .*train\.epoch"):
        plan_jobs(sweep, tmp_path)


def test_an_unknown_sweep_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no sweep named") as caught:
        resolve_sweep("utkface/overparm")
    assert "utkface/overparam" in caught.value.hint and "sweep --list" in caught.value.hint
