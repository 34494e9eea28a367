from pathlib import Path

import pytest
from pydantic import Field

from compactmtl.config import resolve_recipe
from compactmtl.config.recipe import Frozen, Recipe
from compactmtl.config.validate import validate, validate_options
from compactmtl.config.yaml import read_yaml
from compactmtl.errors import ConfigError

BASE = """\
data:
  name: scenes
  size: [64, 64]
tasks:
  age:
    kind: regression
"""


class Options(Frozen):
    noise: float = Field(0.1, ge=0)
    train: int = 10


def check(folder: Path, content: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    return validate(Recipe, read_yaml(path), "recipe x")


@pytest.mark.parametrize(
    ("lines", "line", "message", "hint"),
    [
        ("train:\n  optimizer: {name:sgd}\n", 8, "unknown key `train.optimizer.name:sgd`", "{name: sgd}"),
        ("trian:\n  epochs: 3\n", 7, "unknown key `trian`", "`train`"),
        ("train:\n  epoch: 3\n", 8, "unknown key `train.epoch`", "`train.epochs`"),
        ("epochs: 3\n", 7, "unknown key `epochs`", "`train.epochs`"),
        ("train:\n  lr: 3\n", 8, "unknown key `train.lr`", "`train.optimizer.lr`"),
        ("train:\n  optimizer: {name: sgd, lrate: 3}\n", 8, "unknown key `train.optimizer.lrate`", "lr"),
        ("    head: {kin: fcn}\n", 7, "unknown key `tasks.age.head.kin`", "`tasks.age.head.kind`"),
        ("zzz: 3\n", 7, "unknown key `zzz`", "the keys here are description, seed"),
        ("seed: '3'\n", 7, "`seed`: expected an integer, found the text '3'", "an integer"),
        ("seed: 3.0\n", 7, "`seed`: expected an integer, found the number 3.0", "an integer"),
        ("seed: true\n", 7, "`seed`: expected an integer, found true", "an integer"),
        ("train:\n  clip: high\n", 8, "`train.clip`: expected a number, found the text 'high'", "a number"),
        ("train:\n  clip: 0\n", 8, "`train.clip`: expected a number greater than 0, found the number 0", ""),
        ("train:\n  channels_last: 1\n", 8, "`train.channels_last`: expected true or false", ""),
        ("train:\n  autocast: no\n", 8, "one of off, bfloat16, float16, found the text 'no'", ""),
        ("train:\n  schedule: {name: cosin}\n", 8, "found the text 'cosin'", "did you mean cosine?"),
        ("train: [1]\n", 7, "`train`: expected a mapping, found the list [1]", ""),
        ("train: null\n", 7, "`train`: expected a mapping, found null", ""),
        ("    head: 3\n", 7, "`tasks.age.head`: expected a mapping, found the number 3", ""),
        ("overparam: {rank: ful}\n", 7, "expected full or an integer or a number", "did you mean full?"),
        ("overparam: {rank: -1}\n", 7, "found the number -1", ""),
        ("sparsity:\n  warmup: 0.1\n", 7, "needs exactly one of strength", "`sparsity`"),
        (
            "sparsity:\n  selective: {start: 0.1}\n",
            8,
            "give exactly one of mac_reduction",
            "`sparsity.selective`",
        ),
        ("sparsity:\n  strength: -1\n", 8, "`sparsity.strength`: expected a number", ""),
        ("sparsity:\n  groups: coupld\n", 8, "found the text 'coupld'", "did you mean coupled?"),
        (
            "sparsity:\n  groups: filter\n  selective: {mac_reduction: 0.5}\n",
            7,
            "lie in one layer each and remove no channel alone",
            "",
        ),
        (
            "sparsity:\n  controller: {latency_reduction: 0.5}\n",
            8,
            "latency_reduction needs latency_table",
            "",
        ),
        (
            "sparsity:\n  schedule: {full: 0.5}\n  prune: {mac_reduction: 0.5}\n",
            8,
            "sparsity.schedule needs sparsity.strength",
            "",
        ),
        ("targets: onnxruntime-cpu\n", 7, "`targets`: expected a list", ""),
        (
            "train:\n  optimizer:\n    betas: [0.9]\n",
            9,
            "`train.optimizer.betas`: expected a longer list",
            "",
        ),
        ("train:\n  optimizer:\n    betas: [0.9, 0.9, 0.9]\n", 9, "expected 2 items", ""),
        ("single_task: {age: {mae: low}}\n", 7, "`single_task.age.mae`: expected a number", ""),
        ("    options: {x: {y: 1}}\n", 7, "`tasks.age.options.x`: expected", ""),
    ],
)
def test_a_fault_names_line_key_expected_found_and_mend(
    tmp_path: Path, lines: str, line: int, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check(tmp_path, BASE + lines)
    assert f"recipe.yaml:{line}: " in error.value.message
    assert message in error.value.message
    assert hint in error.value.hint
    assert error.value.hint


def test_a_validator_s_fault_stands_at_the_key_it_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml:3: size needs positive"):
        check(tmp_path, BASE.replace("[64, 64]", "[0, 64]"))


def test_what_is_missing_is_looked_for_where_it_should_stand(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml:1: `data.size` is missing"):
        check(tmp_path, BASE.replace("  size: [64, 64]\n", ""))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check(tmp_path, BASE + "sed: 3\ntrain:\n  epochs: many\n")
    assert "recipe x has 2 faults" in error.value.message
    assert "unknown key `sed`" in error.value.message
    assert "`train.epochs`: expected an integer" in error.value.message
    assert "`seed`" in error.value.hint


def test_an_integer_is_a_number_and_a_list_a_tuple(tmp_path: Path) -> None:
    recipe = check(tmp_path, BASE + "train: {clip: 1}\noverparam: {rank: 1.0}\n")
    assert recipe.data.size == (64, 64)
    assert recipe.train.clip == 1.0
    assert recipe.overparam is not None
    assert isinstance(recipe.overparam.rank, float)  # a share of full, where 1 would be one factor


def test_options_are_checked_as_the_data_set_declares_them() -> None:
    assert validate_options(Options, {"noise": 1}, "data.options") == Options(noise=1.0)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"nois": 1}, "unknown key `data.options.nois`", "`data.options.noise`"),
        ({"noise": "loud"}, "`data.options.noise`: expected a number, found the text 'loud'", "a number"),
        ({"noise": -1.0}, "expected a number of at least 0", ""),
        ({"zzz": 1}, "unknown key `data.options.zzz`", "the keys here are noise, train"),
        ({"zzz": 1, "train": None}, "data.options has 2 faults", ""),
    ],
)
def test_a_wrong_option_is_named_with_its_whole_key(
    options: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        validate_options(Options, options, "data.options")
    assert message in error.value.message
    assert hint in error.value.hint


def test_progressive_compaction_needs_plain_layers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shrink_every needs plain layers"):
        check(
            tmp_path,
            BASE
            + "overparam: {kind: svd}\nsparsity:\n  shrink_every: 1\n  selective: {mac_reduction: 0.5}\n",
        )


def test_more_processes_than_any_machine_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`data\.workers`: expected a number of at most 1024"):
        resolve_recipe("scenes/compact", ["data.workers=10000000000000000000000000"])
