"""A search's space: drawn by Optuna, written as overrides, checked against the recipe, told apart from another."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactmtl.config import SweepConfig, resolve_sweep
from compactmtl.errors import ConfigError
from compactmtl.sweep.jobs import plan_jobs
from compactmtl.sweep.space import check_space, differences, distributions, identity, trial_jobs, words

pytest.importorskip("optuna", reason="Optuna is not installed")

TINY = Path(__file__).parents[1] / "train" / "tiny.yaml"
SPACE = f"""
recipe: {TINY}
baseline: plain
seeds: [0, 1]
entries:
  plain: {{}}
search:
  parameters:
    train.optimizer.lr: {{kind: float, low: 1e-4, high: 1e-2, log: true}}
    train.mixup: {{kind: float, low: 0.5, high: 1.0, step: 0.25}}
    data.batch_size: {{kind: int, low: 2, high: 8, step: 2}}
    model.encoder.options.channels: {{kind: choice, values: [[8, 8, 12, 16], [16, 16, 24, 32]]}}
    train.ema: {{kind: choice, values: [null]}}
  objectives: [{{name: delta_m}}, {{name: parameters}}]
"""


def sweep(tmp_path: Path, text: str = SPACE) -> SweepConfig:
    path = tmp_path / "space.yaml"
    path.write_text(text, "utf-8")
    return resolve_sweep(path).sweep


def test_what_is_drawn_makes_a_recipe(tmp_path: Path) -> None:
    import optuna

    found = sweep(
        tmp_path, SPACE.replace("    train.mixup: {kind: float, low: 0.5, high: 1.0, step: 0.25}\n", "")
    )
    assert found.search is not None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for number in range(4):
        params = study.ask(distributions(found.search)).params
        jobs = trial_jobs(found, number, params, tmp_path, ["train.epochs=2"], smoke=False)
        recipe = jobs[1].resolved.recipe
        assert recipe.train.optimizer.lr == params["train.optimizer.lr"]
        assert recipe.data.batch_size == params["data.batch_size"] and recipe.data.batch_size % 2 == 0
        assert str(recipe.model.encoder.options["channels"]) == params["model.encoder.options.channels"]
        assert (recipe.seed, recipe.train.epochs) == (1, 2)
        assert jobs[1].path == tmp_path / "trials" / f"trial-{number:04d}" / "seed1"


def test_words_are_exact() -> None:
    assert words({"a.b": 0.1, "c": 3, "d": "[1, 2]", "e": "null"}) == ["a.b=0.1", "c=3", "d=[1, 2]", "e=null"]
    assert words({"a": 1e-05 / 3}) == [f"a={1e-05 / 3!r}"]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            "train.optimizer.lrr: {kind: float, low: 0.1, high: 1}",
            r"search\.parameters\.train\.optimizer\.lrr, 0\.1: .*lrr",
        ),
        ("train.clip: {kind: float, low: -1, high: 1}", r"search\.parameters\.train\.clip, -1"),
        ("data.batch_size: {kind: int, low: 0, high: 4}", r"search\.parameters\.data\.batch_size, 0: "),
        ("train.epochs: {kind: choice, values: [3, many]}", r"search\.parameters\.train\.epochs, many: "),
    ],
)
def test_a_value_that_a_recipe_does_not_take_is_named(tmp_path: Path, parameter: str, message: str) -> None:
    text = (
        SPACE.partition("  parameters:")[0]
        + f"  parameters:\n    {parameter}\n  objectives: [{{name: macs}}]\n"
    )
    with pytest.raises(ConfigError, match=message):
        check_space(sweep(tmp_path, text), [], smoke=False)


def test_an_override_of_a_parameter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.parameters\.data\.batch_size varies this key"):
        check_space(sweep(tmp_path), ["data.batch_size=4"], smoke=False)


def test_the_holdout_chooses_in_entries_and_trials(tmp_path: Path) -> None:
    found = sweep(
        tmp_path, SPACE.replace("    train.mixup: {kind: float, low: 0.5, high: 1.0, step: 0.25}\n", "")
    )
    (job, *_) = plan_jobs(found, tmp_path)
    base = check_space(found, [], smoke=False)
    for recipe in (job.resolved.recipe, base.recipe):
        assert (recipe.data.select_on, recipe.data.holdout) == ("holdout", 0.1)
    own = check_space(found, ["data.holdout=0.3"], smoke=False)
    assert (own.recipe.data.select_on, own.recipe.data.holdout) == ("holdout", 0.3)
    with pytest.raises(ConfigError, match=r"would wear val out"):
        check_space(found, ["data.select_on=val"], smoke=False)


def test_two_spaces_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    text = SPACE.replace("    train.mixup: {kind: float, low: 0.5, high: 1.0, step: 0.25}\n", "")
    found = sweep(tmp_path, text)
    one = identity(found, check_space(found, [], smoke=False), [], smoke=False)
    assert differences(one, one) == []
    assert not any("train.optimizer.lr" in key for key in one["recipe"])
    wider = sweep(tmp_path, text.replace("high: 1e-2", "high: 1e-1"))
    other = identity(wider, check_space(wider, [], smoke=False), [], smoke=False)
    assert differences(one, other) == ["parameters: train.optimizer.lr: high: 0.01 and 0.1"]
    longer = identity(
        found, check_space(found, ["train.epochs=9"], smoke=False), ["train.epochs=9"], smoke=False
    )
    assert differences(one, longer) == [
        "baseline: train.epochs: 3 and 9",
        "recipe: train.epochs: 3 and 9",
    ]
    elsewhere = identity(
        found, check_space(found, ["data.root=/x"], smoke=False), ["data.root=/x"], smoke=False
    )
    assert elsewhere == one
