"""Kinds of task by name: one file each, known nowhere else; classes of the user's own, and every mistake in them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import compactmtl
from compactmtl.config import UntrustedError, trusting
from compactmtl.config.recipe import TaskConfig
from compactmtl.errors import ConfigError
from compactmtl.tasks import TargetSpec, Task, build_task
from compactmtl.tasks.registry import all_classes, task_class, task_kinds, usual_kind
from tests.support.own_kind import FAR
from tests.support.task_kinds import usual_options

PACKAGE = Path(compactmtl.__file__).parent
# Words that are a kind's name and mean something else where they stand: file -> word -> what it is there.
OTHER_MEANINGS = {
    "config/model.py": {"instances": "a kind of head"},
    "models/heads.py": {"instances": "a kind of head"},
    "tasks/instance_scoring.py": {"segmentation": "a key of COCO's annotations"},
    "tasks/base.py": dict.fromkeys(
        ("depth", "disparity", "normals", "instances", "multilabel"), "a format of targets"
    ),
    "train/label_teachers.py": dict.fromkeys(("instances", "multilabel"), "a format of targets"),
    "train/pseudo_labels.py": {"multilabel": "a format of targets"},
    "train/regularize.py": {"depth": "the key of a head's layers"},
}


def test_a_kinds_name_stands_in_its_own_file_alone() -> None:
    """The package names no kind but by its file; data sets name their targets as they like."""
    names: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(("data/", "_bundled/")) and (words := _kinds_named(path)):
            names[file] = words
    own = {f"tasks/kinds/{kind}.py": {kind, one.target_kind} for kind, one in all_classes().items()}
    strange = {file: words - own.get(file, set()) for file, words in names.items()}
    assert {file: words for file, words in strange.items() if words} == {
        file: set(words) for file, words in OTHER_MEANINGS.items()
    }


def _kinds_named(path: Path) -> set[str]:
    """The kinds whose names are string constants of a module."""
    text = path.read_text(encoding="utf-8")
    if not any(f'"{kind}"' in text for kind in task_kinds()):  # parsing every module takes seconds
        return set()
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str)} & set(task_kinds())


def test_a_kind_loads_its_file_alone_and_no_torch() -> None:
    code = """
import sys
from compactmtl.tasks.registry import task_kinds
from compactmtl.tasks import task_class
here = "compactmtl.tasks.kinds."
for number, kind in enumerate(task_kinds(), 1):
    task_class(kind, "key")
    loaded = [name for name in sys.modules if name.startswith(here)]
    assert here + kind in loaded and len(loaded) == number, loaded
    assert "torch" not in sys.modules, kind
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_format_of_a_target_has_one_kind_that_shows_it() -> None:
    assert {one.target_kind: usual_kind(one.target_kind) for one in all_classes().values()} == {
        "mask": "segmentation",
        "depth": "depth",
        "disparity": "disparity",
        "normals": "normals",
        "class": "classification",
        "multilabel": "multilabel",
        "scalar": "regression",
        "instances": "instances",
    }


def test_an_unknown_kind_is_refused_where_the_recipe_is_read() -> None:
    with pytest.raises(ValueError, match=r"'depth', .*'segmentation' or 'package\.module:Class'"):
        TaskConfig(kind="dept")
    with pytest.raises(ConfigError, match="no kind of task 'dept'") as error:
        task_class("dept", "tasks.far.kind")
    assert "depth" in error.value.hint


UNKNOWN = {
    "mask": lambda: torch.full((2, 8, 8), 255),
    "depth": lambda: torch.zeros(2, 1, 8, 8),
    "disparity": lambda: torch.zeros(2, 1, 8, 8),
    "normals": lambda: torch.zeros(2, 3, 8, 8),
    "class": lambda: torch.full((2,), 255),
    "multilabel": lambda: torch.full((2, 3), -1.0),
    "scalar": lambda: torch.full((2,), torch.nan),
    "instances": lambda: torch.full((2, 2, 8, 8), -1),
}


@pytest.mark.parametrize("kind", task_kinds())
def test_where_nothing_is_known_nothing_is_learned(kind: str) -> None:
    target = all_classes()[kind].target_kind
    spec = TargetSpec(target, classes=("a", "b", "c"), ignore_index=255)
    task = build_task("it", TaskConfig(kind=kind, options=usual_options(kind)), spec)
    values = UNKNOWN[target]()
    size = (8 // task.stride, 8 // task.stride) if task.dense else ()
    output = torch.randn(2, task.channels, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not task.known(values).any()
    loss = task.loss(output, values)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert output.grad is not None and not output.grad.any()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the Python path with a module of somebody's own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_tasks.py").write_text(FAR)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("own_tasks", None)


def own(kind: str = "own_tasks:Far") -> Task:
    return build_task("far", TaskConfig(kind=kind), TargetSpec("depth", unit="m"))


def test_a_class_of_ones_own_is_imported_at_the_users_word_alone(place: Path) -> None:
    with pytest.raises(UntrustedError, match=r"tasks\.far\.kind: own_tasks:Far is code"):
        own()
    assert "own_tasks" not in sys.modules
    with trusting():
        assert own().kind == "own_tasks:Far"


@pytest.mark.parametrize(
    ("old", "new", "match", "hint"),
    [
        ("class Far(MapTask)", "class Near(MapTask)", "own_tasks has no Far", "Near"),
        ("class Far(MapTask)", "class Far", "own_tasks:Far is not a task class", "MapTask"),
        ("def loss", "def lost", "own_tasks:Far lacks loss", "docs/tasks.md"),
        ('    losses = ("l1",)\n', "", "own_tasks:Far lacks losses", "docs/tasks.md"),
        ('target_kind = "depth"', 'target_kind = "fog"', "target_kind is 'fog'", "mask"),
        ('primary = "error"', 'primary = "terror"', "'terror' is none of its metrics", "error"),
        ("import numpy", "import no_such_package", "needs the module no_such_package", "install"),
        ("import numpy", "1 / 0\nimport numpy", r"own_tasks\.py:\d+: ZeroDivisionError", "python -c"),
    ],
)
def test_what_is_wrong_with_a_class_of_ones_own(
    place: Path, old: str, new: str, match: str, hint: str
) -> None:
    assert old in FAR
    (place / "own_tasks.py").write_text(FAR.replace(old, new, 1))
    with trusting(), pytest.raises(ConfigError, match=match) as error:
        own()
    assert hint in error.value.hint


def test_a_class_of_ones_own_has_options_that_are_checked(place: Path) -> None:
    config = TaskConfig(kind="own_tasks:Far", options={"limt": 3.0})
    with trusting(), pytest.raises(ConfigError, match=r"tasks\.far\.options\.limt"):
        build_task("far", config, TargetSpec("depth"))
