from pathlib import Path

import pytest

from tools.check_imports import PACKAGES, circles, violations

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, name: str, code: str) -> None:
    path = root / "compactmtl" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


@pytest.mark.slow
def test_this_package_imports_one_way() -> None:
    assert violations(ROOT) == []


@pytest.mark.slow
def test_this_package_imports_in_no_circle() -> None:
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    "code",
    [
        "import compactmtl.train",
        "import compactmtl.train.loop as loop",
        "from compactmtl.train import train",
        "from compactmtl import train",
        "from ..train import loop",
        "from .. import train",
        "def late():\n    from compactmtl.train import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from compactmtl.train import Run",
        "import importlib\nimportlib.import_module('compactmtl.train')",
    ],
)
def test_every_way_of_importing_to_the_right_is_caught(tmp_path: Path, code: str) -> None:
    write(tmp_path, "tasks/depth.py", code)
    (fault,) = violations(tmp_path)
    assert "tasks imports train" in fault
    assert f"depth.py:{len(code.splitlines())}:" in fault  # the import is the last line of each


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("train/loop.py", "from compactmtl.tasks import build_task"),
        ("train/loop.py", "from .checkpoint import save"),
        ("train/__init__.py", "from .loop import train"),
        ("tasks/depth.py", "from compactmtl import __version__\nimport torch, compactmtl"),
        ("__init__.py", "from compactmtl.cli import main"),
    ],
)
def test_imports_to_the_left_and_in_the_room_pass(tmp_path: Path, module: str, code: str) -> None:
    write(tmp_path, module, code)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("export", "export imports train, which is not on its left"),
        ("report", "report imports train; a run is read through runs"),
    ],
)
def test_a_package_that_only_reads_runs_does_not_import_the_training_code(
    tmp_path: Path, package: str, why: str
) -> None:
    write(tmp_path, f"{package}/read.py", "from compactmtl.runs import Run\nfrom compactmtl.train import Run")
    (fault,) = violations(tmp_path)
    assert f"read.py:2: {why}" in fault


def test_a_module_outside_the_rooms_is_caught(tmp_path: Path) -> None:
    write(tmp_path, "utils/misc.py", "")
    assert "utils is no package" in violations(tmp_path)[0]


def test_every_room_exists() -> None:
    found = {path.stem for path in (ROOT / "compactmtl").iterdir() if not path.name.startswith(("_", "."))}
    assert found - {"py"} == set(PACKAGES)


@pytest.mark.parametrize(
    "back",
    [
        "import compactmtl.graph.one",
        "from compactmtl.graph.one import Name",
        "from compactmtl.graph import one",
        "from . import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import Name",
        "try:\n    from .one import Name\nexcept ImportError:\n    pass",
    ],
)
def test_modules_that_import_each_other_are_caught(tmp_path: Path, back: str) -> None:
    write(tmp_path, "graph/one.py", "from compactmtl.graph import two")
    write(tmp_path, "graph/two.py", "from compactmtl.graph.three import Name")
    write(tmp_path, "graph/three.py", back)
    (fault,) = circles(tmp_path)
    assert "one.py:1:" in fault
    for name in ("one", "two", "three"):
        assert f"compactmtl.graph.{name}" in fault


def test_a_module_that_takes_names_of_its_own_room_is_caught(tmp_path: Path) -> None:
    write(tmp_path, "graph/__init__.py", "from compactmtl.graph.one import Name")
    write(tmp_path, "graph/one.py", "from compactmtl.graph import Other")
    (fault,) = circles(tmp_path)
    assert "compactmtl.graph -> compactmtl.graph.one -> compactmtl.graph" in fault


@pytest.mark.parametrize(
    "back",
    [
        "def late():\n    from compactmtl.graph.one import Name",
        "from compactmtl.graph.three import Name",
        "from compactmtl.graph import Name",  # a value of the package, whose __init__ imports nothing
    ],
)
def test_late_imports_and_chains_are_no_circle(tmp_path: Path, back: str) -> None:
    write(tmp_path, "graph/__init__.py", "Name = 1")
    write(tmp_path, "graph/three.py", "Name = 1")
    write(tmp_path, "graph/one.py", "import compactmtl.graph.two")
    write(tmp_path, "graph/two.py", back)
    assert circles(tmp_path) == []


def test_two_circles_are_two_faults(tmp_path: Path) -> None:
    for package in ("graph", "tasks"):
        write(tmp_path, f"{package}/one.py", f"import compactmtl.{package}.two")
        write(tmp_path, f"{package}/two.py", f"import compactmtl.{package}.one")
    assert len(circles(tmp_path)) == 2
