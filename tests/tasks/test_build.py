"""From recipe sections to tasks: targets by name, errors that list what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import TargetSpec, build_task, build_tasks
from compactmtl.tasks.registry import all_classes, task_kinds

SPECS = {
    "seg": TargetSpec("mask", classes=("a", "b")),
    "depth": TargetSpec("depth", unit="m"),
    "normals": TargetSpec("normals"),
    "gender": TargetSpec("class", classes=("male", "female")),
    "age": TargetSpec("scalar", unit="years"),
    "disparity": TargetSpec("disparity"),
    "traits": TargetSpec("multilabel", classes=("a", "b", "c")),
}
KINDS = {
    "seg": "segmentation",
    "depth": "depth",
    "normals": "normals",
    "gender": "classification",
    "age": "regression",
    "disparity": "disparity",
    "traits": "multilabel",
}


def test_tasks_keep_the_order_of_the_recipe() -> None:
    order = ["gender", "depth", "age", "seg", "normals"]
    tasks = build_tasks({name: TaskConfig(kind=KINDS[name]) for name in order}, SPECS)
    assert list(tasks) == order
    assert [task.name for task in tasks.values()] == order


@pytest.mark.parametrize(
    ("name", "channels", "dense"),
    [
        ("seg", 2, True),
        ("depth", 1, True),
        ("normals", 3, True),
        ("gender", 2, False),
        ("age", 1, False),
        ("disparity", 1, True),
        ("traits", 3, False),
    ],
)
def test_each_kind_knows_its_output_and_metrics(name: str, channels: int, dense: bool) -> None:
    task = build_tasks({name: TaskConfig(kind=KINDS[name], weight=0.5)}, SPECS)[name]
    assert (task.kind, task.channels, task.dense, task.weight) == (KINDS[name], channels, dense, 0.5)
    assert task.primary in task.metric_info


def test_one_target_can_serve_several_tasks() -> None:
    bins = {"low": 1.0, "high": 100.0, "bins": 10}
    configs = {
        "seg": TaskConfig(kind="segmentation"),
        "edges": TaskConfig(kind="boundaries", target="seg"),
        "age": TaskConfig(kind="regression"),
        "age_bins": TaskConfig(kind="binned_regression", target="age", options=bins),
    }
    tasks = build_tasks(configs, SPECS)
    assert {name: (task.target, task.channels, task.dense) for name, task in tasks.items()} == {
        "seg": ("seg", 2, True),
        "edges": ("seg", 1, True),
        "age": ("age", 1, False),
        "age_bins": ("age", 10, False),
    }


def test_a_task_can_have_another_name_than_its_target() -> None:
    tasks = build_tasks({"years": TaskConfig(kind="regression", target="age")}, SPECS)
    assert tasks["years"].target == "age"


def test_a_missing_target_lists_what_the_data_set_offers() -> None:
    with pytest.raises(ConfigError, match="no target 'ages'") as error:
        build_tasks({"ages": TaskConfig(kind="regression")}, SPECS)
    assert "gender (class)" in error.value.message
    assert "'age'" in error.value.hint


@pytest.mark.parametrize("name", SPECS)
def test_a_target_of_another_kind_is_an_error(name: str) -> None:
    wrong = "regression" if name != "age" else "depth"
    with pytest.raises(ConfigError, match=f"but '{name}' is of kind '{SPECS[name].kind}'"):
        build_tasks({name: TaskConfig(kind=wrong)}, SPECS)


@pytest.mark.parametrize("name", ["a.b", "", "1st", "x/y", "a b"])
def test_a_name_that_cannot_name_an_output_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="task's name"):
        build_task(name, TaskConfig(kind="depth"), SPECS["depth"])


def test_unknown_loss_and_option_are_errors() -> None:
    with pytest.raises(ConfigError, match="no loss 'hinge'"):
        build_task("seg", TaskConfig(kind="segmentation", loss="hinge"), SPECS["seg"])
    with pytest.raises(ConfigError, match="label_smooth"):
        build_task("seg", TaskConfig(kind="segmentation", options={"label_smooth": 0.1}), SPECS["seg"])


@pytest.mark.parametrize("kind", task_kinds())
def test_the_documentation_names_every_loss_and_option(kind: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
    task_class = all_classes()[kind]
    for loss in task_class.losses:
        assert f"`{loss}`" in row
    assert f"| `{task_class.primary}`" in row  # its first metric
    found = re.search(rf"^- \*\*{kind}\*\*.*?(?=^- |\Z)", text, re.MULTILINE | re.DOTALL)
    for option in task_class.Options.model_fields:
        assert found is not None
        assert f"`{option}`" in found[0]
