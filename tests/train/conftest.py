"""A tiny recipe on rendered rooms that trains in a second or two."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from compactmtl.config import Resolved, resolve_recipe
from compactmtl.train import Run, train

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def everything() -> str:
    """Sections that give the tiny recipe every part with a state of its own."""
    return (HERE / "everything.yaml").read_text().partition("extends: tiny.yaml\n")[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Resolved]:
    """tiny(*overrides, more=YAML) -> the resolved tiny recipe."""

    def make(*overrides: str, more: str = "") -> Resolved:
        path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
        path.write_text(f"extends: {HERE / 'tiny.yaml'}\n{more}")
        return resolve_recipe(path, list(overrides))

    return make


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Resolved, Run]:
    """A finished run of the tiny recipe with everything; not to be changed."""
    resolved = resolve_recipe(HERE / "everything.yaml")
    return resolved, train(resolved, tmp_path_factory.mktemp("whole") / "run", console=Console(quiet=True))


@pytest.fixture
def quiet() -> Callable[[], Console]:
    """A console that keeps its lines to itself; quiet().file.getvalue() has them."""
    return lambda: Console(file=io.StringIO(), width=200)
