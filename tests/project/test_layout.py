"""Files of artifacts have one name each, in artifacts/layout.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactmtl.artifacts import layout

PACKAGE = Path(layout.__file__).parents[1]
NAMES = {
    value for key, value in vars(layout).items() if key.isupper() and isinstance(value, str) and "." in value
}


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Every string of a module that is no docstring, with its line."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def named(text: str) -> str | None:
    """The artifact's file that a text names, such as plan.json in "DIR/plan.json is missing"."""
    words = (word.lstrip("`'\"(").rstrip(",.:;`'\")") for word in text.replace("/", " ").split())
    return next((word for word in words if word in NAMES), None)


@pytest.mark.slow
def test_no_module_but_the_layout_names_a_file_of_an_artifact() -> None:
    faults = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        # a bundle's programs have no layout to import
        if path != Path(layout.__file__) and path.parent.name != "in_bundle"
        if any(name in (source := path.read_text(encoding="utf-8")) for name in NAMES)
        for line, text in literals(source)
        if (name := named(text))
    ]
    assert not faults, "\n".join(faults)


def test_a_literal_in_code_is_found_and_a_docstring_is_not() -> None:
    source = '''
"""Reads plan.json."""
def read(folder):
    """Reads plan.json."""
    return folder / "plan.json", f"{folder}/meta.json is missing"
'''
    assert [named(text) for _, text in literals(source)] == ["plan.json", "meta.json"]
