"""No module outside of a backend's own folder knows the backend by name: a new one needs no line elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.backends import backend_names
from compactmtl.backends.versions import CORE

PACKAGE = Path(__file__).resolve().parents[2] / "compactmtl"
# The word for a core package is no backend's name by itself (`"torch" in sys.modules`): it is where a backend is meant.
CALLS = frozenset({"get_backend", "Target", "Backend"})


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Lines on which a backend's name stands as a string constant, with the name."""
    known = set(backend_names())
    if not any(f'"{name}"' in source for name in known):  # ruff keeps all strings in double quotes
        return
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in known - set(CORE):
            yield node.lineno, str(node.value)
    for node in ast.walk(tree):
        for constant in _meant(node):
            if constant.value in known & set(CORE):
                yield constant.lineno, str(constant.value)


def _meant(node: ast.AST) -> Iterator[ast.Constant]:
    """Constants that are given as a backend, or compared with one."""
    if isinstance(node, ast.Call) and _last(node.func) in CALLS:
        parts: list[ast.expr] = [*node.args, *(word.value for word in node.keywords)]
    elif isinstance(node, ast.keyword) and node.arg == "backend":
        parts = [node.value]
    elif isinstance(node, ast.Compare) and any("backend" in _last(one) for one in ast.walk(node)):
        parts = [node.left, *node.comparators]
    else:
        return
    for part in parts:
        yield from (one for one in ast.walk(part) if isinstance(one, ast.Constant))


def _last(node: ast.AST) -> str:
    """The last word of a dotted name; empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_backend_is_known_by_name_outside_of_its_folder() -> None:
    own = {PACKAGE / "backends" / name.replace("-", "_") for name in backend_names()}
    faults = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent not in own
        for line, name in names_in(path.read_text(encoding="utf-8"))
    ]
    assert faults == []


@pytest.mark.parametrize(
    "code",
    [
        'if target.backend == "tensorrt":\n    pass',
        'BACKENDS = ("openvino",)',
        'backend: Literal["onnxruntime"]',
        'get_backend("torch")',
        'Target(backend="torch")',
        'describe(backend="torch")',
        'if backend.name in ("torch", None):\n    pass',
    ],
)
def test_each_way_of_knowing_one_is_found(code: str) -> None:
    assert len(set(names_in(code))) == 1


@pytest.mark.parametrize("code", ['"torch" in sys.modules', 'find_spec("torch")', '"onnxruntime-cpu"'])
def test_a_package_or_a_target_is_no_backend(code: str) -> None:
    assert list(names_in(code)) == []
